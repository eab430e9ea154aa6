//! Versions of the specification.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Version(u32, u32, u32);

/// Not a version that is supported.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cniVersion {0:?} is not supported; {min} to {max} are", min = Version::MIN, max = Version::MAX)]
pub(crate) struct VersionError(String);

impl Version {
    /// The first with results of this form.
    const MIN: Self = Self(0, 3, 0);
    /// The last that this was written for.
    const MAX: Self = Self(1, 1, 0);

    /// Plugins know CHECK, and DEL gets the result of ADD.
    pub(crate) fn has_check(self) -> bool {
        self >= Self(0, 4, 0)
    }

    /// Plugins know STATUS and GC.
    pub(crate) fn has_status(self) -> bool {
        self >= Self(1, 1, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let error = || VersionError(text.chars().take(32).collect());
        let mut parts = text.split('.').map(str::parse::<u32>);
        let mut next = || parts.next().and_then(Result::ok);
        let (Some(major), Some(minor), Some(patch)) = (next(), next(), next()) else {
            return Err(error());
        };
        let version = Self(major, minor, patch);
        let whole = parts.next().is_none();
        if whole && (Self::MIN..=Self::MAX).contains(&version) {
            Ok(version)
        } else {
            Err(error())
        }
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, VersionError> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_versions_are_read_and_others_refused() {
        for text in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), text);
        }
        for text in [
            "", "0.2.0", "1.2.0", "2.0.0", "1.0", "1.0.0.0", "1.x.0", "-1.0.0",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn verbs_came_with_versions() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(!version("0.3.1").has_check() && version("0.4.0").has_check());
        assert!(!version("1.0.0").has_status() && version("1.1.0").has_status());
    }
}

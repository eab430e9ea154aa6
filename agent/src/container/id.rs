//! Names that callers choose, checked once at the edge.
//!
//! Each becomes a file name, so none can be empty, contain a slash or start with a dot.

use std::borrow::Borrow;
use std::fmt;

/// Longest container or exec id, in bytes.
const ID_MAX: usize = 128;

/// Longest disk serial, in bytes (virtio 1.2 section 5.2.6.1).
const SERIAL_MAX: usize = 20;

/// A name that cannot be one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum IdError {
    /// Empty, or over the limit.
    #[error("{what} of {length} bytes: must have 1 to {max}")]
    Length {
        /// Which kind of name.
        what: &'static str,
        /// How long it is.
        length: usize,
        /// How long it may be.
        max: usize,
    },
    /// A character outside `[A-Za-z0-9._-]`, or a leading dot.
    #[error("{what} {value:?}: only [A-Za-z0-9._-], and no leading dot")]
    Character {
        /// Which kind of name.
        what: &'static str,
        /// The name.
        value: String,
    },
}

fn check(what: &'static str, value: &str, max: usize) -> Result<(), IdError> {
    let length = value.len();
    if length == 0 || length > max {
        return Err(IdError::Length { what, length, max });
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if value.starts_with('.') || !value.bytes().all(allowed) {
        return Err(IdError::Character {
            what,
            value: value.to_owned(),
        });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub(crate) struct $type(String);

        impl $type {
            /// Checks a name that a caller sent.
            ///
            /// # Errors
            ///
            /// [`IdError`] when it is empty, too long or has a character that is not allowed.
            pub(crate) fn new(value: String) -> Result<Self, IdError> {
                check($what, &value, $max)?;
                Ok(Self(value))
            }

            /// The name.
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A container's id.
    ContainerId,
    "container id",
    ID_MAX
);
name!(
    /// An exec's id, unique in its container.
    ExecId,
    "exec id",
    ID_MAX
);
name!(
    /// A disk's serial number.
    Serial,
    "disk serial",
    SERIAL_MAX
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hexadecimal_id_is_accepted() {
        assert!(ContainerId::new("0123abc".repeat(9)).is_ok());
    }

    #[test]
    fn a_name_that_walks_up_the_tree_is_refused() {
        for name in ["", ".", "..", "a/b", "../x", ".hidden", "a b", "a\0b", "é"] {
            assert!(ContainerId::new(name.to_owned()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_name_over_the_limit_is_refused() {
        assert!(Serial::new("a".repeat(20)).is_ok());
        assert!(Serial::new("a".repeat(21)).is_err());
        assert!(ExecId::new("a".repeat(129)).is_err());
    }
}

//! Identifiers: made here or checked here, once, and trusted everywhere else.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Length of an identifier in hexadecimal digits, as containerd's.
const HEX_LEN: usize = 64;

/// Not 64 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an identifier of 64 hexadecimal digits")]
pub(crate) struct IdError(String);

fn check(text: &str) -> Result<(), IdError> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == HEX_LEN && text.bytes().all(hex) {
        return Ok(());
    }
    Err(IdError(text.chars().take(HEX_LEN + 1).collect()))
}

/// 32 bytes from the kernel's generator, in hexadecimal.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut bytes = [0; HEX_LEN / 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex::encode(bytes))
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub(crate) struct $name(String);

        impl $name {
            /// A new one, from 256 random bits.
            ///
            /// # Errors
            ///
            /// When `/dev/urandom` cannot be read.
            pub(crate) fn random() -> io::Result<Self> {
                random_hex().map(Self)
            }

            /// The 64 digits.
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

identifier! {
    /// A sandbox.
    SandboxId
}

identifier! {
    /// A container.
    ContainerId
}

identifier! {
    /// A process started in a running container.
    ExecId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_valid_and_differ() {
        let first = SandboxId::random().unwrap();
        assert_eq!(first.as_str().parse(), Ok(first.clone()));
        assert_ne!(first, SandboxId::random().unwrap());
    }

    #[test]
    fn text_that_could_leave_a_folder_is_not_an_id() {
        for text in [
            "",
            "..",
            "../../etc",
            &"A".repeat(64),
            &"a".repeat(63),
            &"a".repeat(65),
        ] {
            assert!(text.parse::<ContainerId>().is_err(), "{text:?}");
        }
    }
}

//! Descriptors that the process was started with, in the way of `sd_listen_fds(3)`.
#![expect(unsafe_code, reason = "descriptors begin as numbers")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::{DescriptorError, Descriptors};

const COUNT: &str = "LISTEN_FDS";
const NAMES: &str = "LISTEN_FDNAMES";
/// The first one's number.
const FIRST: RawFd = 3;

/// The process was not started in the agreed way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritError {
    /// An environment variable is missing or is not what it should be.
    #[error("the environment variable {0} is missing or wrong")]
    Environment(&'static str),
    /// A descriptor is not open.
    #[error("inherited descriptor {name} ({number})")]
    NotOpen {
        /// By name.
        name: String,
        /// By number.
        number: RawFd,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name is wrong or there twice.
    #[error("inherited descriptor {number}")]
    Table {
        /// By number.
        number: RawFd,
        /// What is wrong.
        #[source]
        source: DescriptorError,
    },
}

/// Takes over all inherited descriptors, by name. They are not inherited any further.
///
/// # Errors
///
/// [`InheritError`].
///
/// # Safety
///
/// Called once, before anything else of the process opens or owns a descriptor.
pub(crate) unsafe fn take_all() -> Result<Descriptors, InheritError> {
    let table = Descriptors::default();
    for (number, name) in (FIRST..).zip(names()?) {
        close_on_exec(number).map_err(|source| InheritError::NotOpen {
            name: name.clone(),
            number,
            source,
        })?;
        // SAFETY: the descriptor is open, as was just seen, and nothing else owns it, by this
        // function's contract.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        table
            .put(&name, descriptor)
            .map_err(|source| InheritError::Table { number, source })?;
    }
    Ok(table)
}

fn close_on_exec(number: RawFd) -> io::Result<()> {
    // SAFETY: sets a flag of a descriptor, or fails when there is none with this number.
    match unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn names() -> Result<Vec<String>, InheritError> {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .ok_or(InheritError::Environment(name))
    };
    parse(&variable(COUNT)?, &variable(NAMES)?)
}

fn parse(count: &str, names: &str) -> Result<Vec<String>, InheritError> {
    let count: usize = count.parse().ok().ok_or(InheritError::Environment(COUNT))?;
    let names: Vec<String> = names.split(':').map(str::to_owned).collect();
    if names.len() != count {
        return Err(InheritError::Environment(NAMES));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_colons() {
        assert_eq!(parse("2", "control:kvm").unwrap(), ["control", "kvm"]);
    }

    #[test]
    fn a_count_that_does_not_match_the_names_returns_error() {
        for (count, names) in [("2", "control"), ("1", "a:b"), ("-1", "a"), ("x", "a")] {
            assert!(parse(count, names).is_err());
        }
    }
}

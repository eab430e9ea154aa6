//! File descriptors from the daemon (`isopod_proto::descriptors`): the ones inherited at start
//! ([`inherited`]) and those that arrive later through the descriptor socket ([`socket`]). Both wait
//! in one table, each under its name, until a request takes them.

pub(crate) mod inherited;
pub(crate) mod limit;
pub(crate) mod socket;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use isopod_proto::descriptors::{NAME_MAX, WAITING_MAX};

/// A descriptor cannot wait, or is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DescriptorError {
    /// Not 1 to 96 characters of printable ASCII without colon.
    #[error("not a name for a descriptor")]
    Name,
    /// The name stands for another one that was not taken yet.
    #[error("a descriptor {0} is waiting already")]
    Exists(String),
    /// [`WAITING_MAX`] are waiting.
    #[error("{WAITING_MAX} descriptors are waiting to be taken")]
    Full,
    /// Nothing waits under the name.
    #[error("no descriptor {0} is waiting")]
    Unknown(String),
}

/// Descriptors that wait to be taken.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    waiting: Mutex<HashMap<String, OwnedFd>>,
}

impl Descriptors {
    /// Keeps `descriptor` under `name`. It is closed when that fails.
    ///
    /// # Errors
    ///
    /// [`DescriptorError::Name`], [`DescriptorError::Exists`] and [`DescriptorError::Full`].
    pub(crate) fn put(&self, name: &str, descriptor: OwnedFd) -> Result<(), DescriptorError> {
        if !is_name(name) {
            return Err(DescriptorError::Name);
        }
        let mut waiting = self.lock();
        if waiting.len() >= WAITING_MAX {
            return Err(DescriptorError::Full);
        }
        match waiting.entry(name.to_owned()) {
            Entry::Occupied(_) => Err(DescriptorError::Exists(name.to_owned())),
            Entry::Vacant(free) => {
                free.insert(descriptor);
                Ok(())
            }
        }
    }

    /// Hands out the descriptor that waits under `name`.
    ///
    /// # Errors
    ///
    /// [`DescriptorError::Unknown`].
    pub(crate) fn take(&self, name: &str) -> Result<OwnedFd, DescriptorError> {
        self.lock().remove(name).ok_or_else(|| {
            // Names come from the daemon, but a wrong one may be anything.
            DescriptorError::Unknown(name.chars().take(NAME_MAX).collect())
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, OwnedFd>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b':')
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn descriptor() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_descriptor_can_be_taken_once() {
        let table = Descriptors::default();
        table.put("disk-1", descriptor()).unwrap();
        assert!(table.take("disk-1").is_ok());
        assert!(matches!(
            table.take("disk-1"),
            Err(DescriptorError::Unknown(_))
        ));
    }

    #[test]
    fn put_under_a_name_in_use_returns_error_and_keeps_the_first() {
        let table = Descriptors::default();
        table.put("a", descriptor()).unwrap();
        assert!(matches!(
            table.put("a", descriptor()),
            Err(DescriptorError::Exists(_))
        ));
        assert!(table.take("a").is_ok());
    }

    #[test]
    fn put_under_what_is_no_name_returns_error() {
        let table = Descriptors::default();
        for name in ["", "a:b", "a b", "a\n", "\u{e9}", &"x".repeat(NAME_MAX + 1)] {
            assert_eq!(table.put(name, descriptor()), Err(DescriptorError::Name));
        }
    }

    #[test]
    fn put_into_a_full_table_returns_error() {
        let table = Descriptors::default();
        for n in 0..WAITING_MAX {
            table.put(&n.to_string(), descriptor()).unwrap();
        }
        assert_eq!(table.put("more", descriptor()), Err(DescriptorError::Full));
    }
}

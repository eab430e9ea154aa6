//! Files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

/// Most open files and directories.
const HANDLES_MAX: usize = 1 << 16;

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    /// The node that it was opened as.
    pub(super) node: u64,
    fd: OwnedFd,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Handles {
    by_number: HashMap<u64, Arc<Handle>>,
    next: u64,
}

impl Handles {
    /// Whether one more fits.
    pub(super) fn check_room(&self) -> Result<(), Errno> {
        match self.by_number.len() < HANDLES_MAX {
            true => Ok(()),
            false => Err(Errno::NFILE),
        }
    }

    /// Keeps an open file; its number.
    pub(super) fn insert(&mut self, node: u64, fd: OwnedFd) -> Result<u64, Errno> {
        self.check_room()?;
        let number = self.next;
        self.next += 1;
        self.by_number.insert(number, Arc::new(Handle { node, fd }));
        Ok(number)
    }

    pub(super) fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.by_number
            .get(&number)
            .map(Arc::clone)
            .ok_or(Errno::BADF)
    }

    /// The guest has closed it.
    pub(super) fn remove(&mut self, number: u64) {
        self.by_number.remove(&number);
    }

    /// Closes everything that was opened as one of these nodes.
    pub(super) fn close_nodes(&mut self, nodes: &[u64]) {
        self.by_number
            .retain(|_, handle| !nodes.contains(&handle.node));
    }

    /// Closes everything.
    pub(super) fn clear(&mut self) {
        self.by_number.clear();
    }
}

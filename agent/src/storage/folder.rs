//! Disks of a host: names in a folder.

use std::path::PathBuf;

use super::{Disk, StorageError};
use crate::container::Serial;

/// The folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Disks are in `path`.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Finds the file or folder of that name.
    ///
    /// # Errors
    ///
    /// [`StorageError::NotFound`].
    pub(super) fn find(&self, serial: &Serial) -> Result<Disk, StorageError> {
        let node = self.path.join(serial.as_str());
        if node.exists() {
            return Ok(Disk {
                serial: serial.clone(),
                node,
                memory: false,
            });
        }
        Err(StorageError::NotFound {
            serial: serial.clone(),
        })
    }
}

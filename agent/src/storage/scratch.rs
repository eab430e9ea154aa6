//! The sandbox's writable disk.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Disk, StorageError, blocking};

/// Where containers' writable layers are.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    path: PathBuf,
    mounted: bool,
}

impl Scratch {
    /// Mounts the disk at `path`; a disk that is a folder is used where it is.
    ///
    /// # Errors
    ///
    /// When it holds no ext4 file system.
    pub(crate) async fn open(disk: &Disk, path: &Path) -> Result<Self, StorageError> {
        if disk.node.is_dir() {
            return Ok(Self {
                path: disk.node.clone(),
                mounted: false,
            });
        }
        let (node, path) = (disk.node.clone(), path.to_owned());
        blocking(move || {
            fs::create_dir_all(&path).map_err(StorageError::io("making", &path))?;
            // Deleted files give their blocks back to the host.
            mount(
                Some(&node),
                &path,
                Some("ext4"),
                MsFlags::MS_NOATIME,
                Some("discard"),
            )
            .map_err(|source| StorageError::Mount {
                what: "the scratch disk",
                path: path.clone(),
                source,
            })?;
            Ok(Self {
                path,
                mounted: true,
            })
        })
        .await
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts the disk, if it was mounted.
    ///
    /// # Errors
    ///
    /// When something still uses it.
    pub(crate) async fn close(self) -> Result<(), StorageError> {
        if !self.mounted {
            return Ok(());
        }
        blocking(move || {
            umount2(&self.path, MntFlags::UMOUNT_NOFOLLOW).map_err(|source| StorageError::Unmount {
                path: self.path,
                source,
            })
        })
        .await
    }
}

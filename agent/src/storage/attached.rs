//! A disk beside that of a container's root: an image that it sees as a volume, read-only, whole or a
//! part of it; or a block device.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::rootfs::{mount_image, resolve_in, unmount};
use super::{Disk, Disks, StorageError, blocking};

/// A disk and, for an image, its mount point; [`Attached::remove`] takes down what is there.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    /// The disk.
    pub(crate) disk: Disk,
    path: PathBuf,
}

impl Attached {
    /// A disk that, if it holds an image, will be mounted in `folder`.
    pub(crate) fn new(disk: Disk, folder: &Path) -> Self {
        let path = folder.join(format!("image-{}", disk.serial));
        Self { disk, path }
    }

    /// Mounts the image; the path of `part` of it, links followed inside the image.
    ///
    /// # Errors
    ///
    /// When the disk holds no EROFS file system, or there is no such part.
    pub(crate) async fn mount(&self, part: PathBuf) -> Result<PathBuf, StorageError> {
        let this = self.clone();
        blocking(move || {
            if this.disk.node.is_dir() {
                return resolve_in(&this.disk.node, &part);
            }
            fs::create_dir_all(&this.path).map_err(StorageError::io("making", &this.path))?;
            mount_image(&this.disk, &this.path)?;
            resolve_in(&this.path, &part)
        })
        .await
    }

    /// Major and minor number of the block device.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub(crate) fn device_number(&self) -> Result<(u64, u64), StorageError> {
        let node = &self.disk.node;
        let failed = StorageError::io("examining", node);
        let metadata = fs::metadata(node).map_err(failed)?;
        if !metadata.file_type().is_block_device() {
            let error = io::Error::other("not a block device");
            return Err(StorageError::io("using", node)(error));
        }
        let number = metadata.rdev();
        Ok((major(number), minor(number)))
    }

    /// Unmounts the image and lets go of the disk. Idempotent.
    ///
    /// # Errors
    ///
    /// The first of what could not be done; the rest is tried all the same.
    pub(crate) async fn remove(self, disks: &Disks) -> Result<(), StorageError> {
        let path = self.path.clone();
        let unmounted = blocking(move || {
            unmount(&path)?;
            match fs::remove_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result.map_err(StorageError::io("removing", &path)),
            }
        })
        .await;
        let detached = disks.detach(&self.disk).await;
        unmounted.and(detached)
    }
}

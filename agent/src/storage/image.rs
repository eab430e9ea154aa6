//! An image that a container sees as a volume: read-only, whole or a part of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::rootfs::{mount_image, resolve_in, unmount};
use super::{Disk, Disks, StorageError, blocking};

/// A disk and its mount point; [`Image::remove`] takes down what is there.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The disk.
    pub(crate) disk: Disk,
    path: PathBuf,
}

impl Image {
    /// An image that will be mounted in `folder`.
    pub(crate) fn new(disk: Disk, folder: &Path) -> Self {
        let path = folder.join(format!("image-{}", disk.serial));
        Self { disk, path }
    }

    /// Mounts it; the path of `part` of it, links followed inside the image.
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

    /// Unmounts it and lets go of the disk. Idempotent.
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

//! The pod's volumes: folders and files of the host.
//!
//! In a guest they are the entries of one virtio-fs device, which comes with the first of them and is
//! mounted once; on a host they are names in a folder. Either way a volume is a path below one
//! folder, which is bound into containers.

use std::fs;
use std::path::{Path, PathBuf};

use isopod_proto::VOLUMES_TAG;
use isopod_proto::agent::Change;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::sync::OnceCell;

use super::bus::rescan;
use super::replay::Replayer;
use super::{StorageError, blocking};
use crate::container::Serial;

/// Where volumes come from.
#[derive(Debug)]
pub(crate) enum Volumes {
    /// A guest's file system device.
    Device {
        /// Where it is mounted.
        path: PathBuf,
        /// It is; and what tells of changes in it.
        mounted: OnceCell<Replayer>,
    },
    /// A host's folder.
    Folder(PathBuf),
}

impl Volumes {
    /// A guest's, mounted at `path` when it is first needed.
    pub(crate) fn device(path: PathBuf) -> Self {
        Self::Device {
            path,
            mounted: OnceCell::new(),
        }
    }

    /// The path of a volume.
    ///
    /// # Errors
    ///
    /// [`StorageError::NoVolume`] when there is none of that name, and when the device cannot be
    /// mounted.
    pub(crate) async fn find(&self, name: &Serial) -> Result<PathBuf, StorageError> {
        let folder = match self {
            Self::Folder(path) => path,
            Self::Device { path, mounted } => {
                mounted.get_or_try_init(|| mount_device(path)).await?;
                path
            }
        };
        let path = folder.join(name.as_str());
        let found = path.clone();
        blocking(move || match fs::metadata(&found) {
            Ok(_) => Ok(()),
            Err(source) => Err(StorageError::NoVolume {
                path: found,
                source,
            }),
        })
        .await?;
        Ok(path)
    }

    /// Lets those who watch a volume know what has changed in it on the host. A folder's changes are
    /// this kernel's own: it has told of them.
    pub(crate) async fn replay(&self, name: &Serial, changes: Vec<Change>) {
        let Self::Device { path, mounted } = self else {
            return;
        };
        // Nobody watches what nobody has mounted.
        let Some(replayer) = mounted.get() else {
            return;
        };
        if !replayer.replay(path.join(name.as_str()), changes).await {
            tracing::warn!(
                volume = name.as_str(),
                "changes come too fast to be told of"
            );
        }
    }

    /// Unmounts the device, if it was mounted: what was written through mapped memory is on the host
    /// then.
    ///
    /// # Errors
    ///
    /// When something still uses it.
    pub(crate) async fn close(&self) -> Result<(), StorageError> {
        match self {
            Self::Device { path, mounted } if mounted.initialized() => {
                let path = path.clone();
                blocking(move || {
                    umount2(&path, MntFlags::UMOUNT_NOFOLLOW)
                        .map_err(|source| StorageError::Unmount { path, source })
                })
                .await
            }
            _ => Ok(()),
        }
    }
}

async fn mount_device(path: &Path) -> Result<Replayer, StorageError> {
    let path = path.to_owned();
    blocking(move || {
        fs::create_dir_all(&path).map_err(StorageError::io("making", &path))?;
        // Its driver is in the kernel, so that the device is ready when the bus has been searched.
        rescan()?;
        mount(
            Some(VOLUMES_TAG),
            &path,
            Some("virtiofs"),
            MsFlags::MS_NODEV,
            None::<&str>,
        )
        .map_err(|source| StorageError::Mount {
            what: "the volumes",
            path: path.clone(),
            source,
        })?;
        let failed = StorageError::io("starting a thread for", &path);
        Replayer::start(path.clone()).map_err(failed)
    })
    .await
}

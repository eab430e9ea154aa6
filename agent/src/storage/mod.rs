//! Disks, and the root file systems made of them.
//!
//! The caller names disks by serial number. Where they come from is the one thing that differs
//! between a microVM and host namespaces ([`Disks`]):
//!
//! - in a guest, from the PCI bus, where they appear and from which they are taken off again
//!   ([`bus`]);
//! - on a host, from a folder, where the serial is a name: an EROFS image file, or a folder.
//!
//! A container's root is an overlay: the disk below, read-only, and above it a folder on the
//! sandbox's writable *scratch* disk.
//!
//! ```text
//!  <state>/containers/<id>/lower     EROFS, read-only
//!  <state>/scratch/<id>/upper, work  what the container writes
//!  <state>/containers/<id>/rootfs    overlay of both
//!  <state>/containers/<id>/image-*   another image that the container sees ([`attached`])
//!  <state>/containers/<id>/layer     the writable layer, and
//!  <state>/containers/<id>/mapped    sources of mounts, with a user namespace's ids ([`mapped`])
//!  <state>/volumes/<name>            a folder or file of the host ([`volumes`])
//! ```
//!
//! Mounts and removals can take long, and run on the runtime's blocking threads.

mod acting;
mod attached;
mod bus;
mod folder;
mod function;
mod mapped;
mod replay;
mod rootfs;
mod scratch;
mod volumes;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use attached::Attached;
pub(crate) use bus::Bus;
pub(crate) use folder::Folder;
pub(crate) use mapped::Mapped;
pub(crate) use rootfs::Rootfs;
pub(crate) use scratch::Scratch;
pub(crate) use volumes::Volumes;

use crate::container::Serial;

/// What went wrong with a disk or a mount.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    /// The disk did not appear in time, or there is no such file.
    #[error("disk {serial} not found")]
    NotFound {
        /// Its serial.
        serial: Serial,
    },
    /// Another container has it.
    #[error("disk {serial} is in use")]
    InUse {
        /// Its serial.
        serial: Serial,
    },
    /// The bus could not be searched, or the disk not be taken off it.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file system could not be mounted.
    #[error("mounting {what} at {path}")]
    Mount {
        /// Which file system.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// It could not be unmounted.
    #[error("unmounting {path}")]
    Unmount {
        /// Where it is mounted.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// The host has given no such volume.
    #[error("volume {path}")]
    NoVolume {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A path in an image or a root file system.
    #[error("{path} in the image")]
    InImage {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The sandbox was not set up, so there is nowhere to write.
    #[error("the sandbox has no scratch disk yet")]
    NoScratch,
    /// A blocking thread ended: the agent is going down.
    #[error("the operation was given up")]
    GivenUp,
}

impl StorageError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// Where disks come from.
#[derive(Debug)]
pub(crate) enum Disks {
    /// A guest's PCI bus.
    Bus(Bus),
    /// A host's folder.
    Folder(Folder),
}

/// A disk that was found.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    /// Its serial.
    pub(crate) serial: Serial,
    /// A block device, an image file, or a folder.
    pub(crate) node: PathBuf,
    /// It is persistent memory, which a file system reads in place (DAX).
    pub(crate) memory: bool,
}

impl Disks {
    /// Finds a disk, waiting for it a bounded time.
    ///
    /// # Errors
    ///
    /// [`StorageError::NotFound`] when it does not appear.
    pub(crate) async fn find(&self, serial: &Serial) -> Result<Disk, StorageError> {
        match self {
            Self::Bus(bus) => bus.find(serial).await,
            Self::Folder(folder) => folder.find(serial),
        }
    }

    /// Lets go of a disk that nothing uses any more.
    ///
    /// # Errors
    ///
    /// When the kernel does not.
    pub(crate) async fn detach(&self, disk: &Disk) -> Result<(), StorageError> {
        match self {
            Self::Bus(bus) => bus.detach(disk).await,
            Self::Folder(_) => Ok(()),
        }
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_panic| StorageError::GivenUp)?
}

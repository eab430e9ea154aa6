//! Mounts whose files have the ids of a user namespace (mount_setattr(2), "ID-mapped mounts").
//!
//! What belongs to 0 on the disk belongs to the namespace's root in such a mount, and the other way
//! round for what is written. A mount gets its mapping before it has a place, so everything here is a
//! copy of another mount; it needs a place of its own, in the container's folder:
//!
//! ```text
//!  <state>/containers/<id>/lower       the image's, in the disk's own place
//!  <state>/containers/<id>/layer       the writable layer's
//!  <state>/containers/<id>/mapped/<n>  the source of one of the container's mounts
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::rootfs::unmount;
use super::{StorageError, blocking};

/// The sources of a container's mounts.
#[derive(Debug, Clone)]
pub(crate) struct Mapped {
    folder: PathBuf,
}

impl Mapped {
    /// Those of the container whose folder is `container`.
    pub(crate) fn new(container: &Path) -> Self {
        Self {
            folder: container.join("mapped"),
        }
    }

    /// Mounts a copy of what is at `source`, a folder or a file, with the ids of the user namespace at
    /// `users`; answers where. `number` tells the container's mounts apart.
    ///
    /// # Errors
    ///
    /// When its file system cannot have its ids mapped.
    pub(crate) async fn mount(
        &self,
        number: usize,
        source: PathBuf,
        users: PathBuf,
    ) -> Result<PathBuf, StorageError> {
        let (folder, target) = (self.folder.clone(), self.folder.join(number.to_string()));
        blocking(move || {
            fs::create_dir_all(&folder).map_err(StorageError::io("making", &folder))?;
            let metadata = fs::metadata(&source).map_err(StorageError::io("examining", &source))?;
            let made = match metadata.is_dir() {
                true => fs::create_dir(&target),
                false => fs::File::create_new(&target).map(drop),
            };
            made.map_err(StorageError::io("making", &target))?;
            attach(&copy(&source, &users)?, &target)?;
            Ok(target)
        })
        .await
    }

    /// Unmounts all of them. Idempotent.
    ///
    /// # Errors
    ///
    /// The first of what could not be done; the rest is tried all the same.
    pub(crate) async fn remove(self) -> Result<(), StorageError> {
        blocking(move || {
            let entries = match fs::read_dir(&self.folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries.map_err(StorageError::io("reading", &self.folder))?,
            };
            let mut unmounted = Ok(());
            for entry in entries.flatten() {
                unmounted = unmounted.and(unmount(&entry.path()));
            }
            unmounted?;
            fs::remove_dir_all(&self.folder).map_err(StorageError::io("deleting", &self.folder))
        })
        .await
    }
}

/// A copy of the mounts at `source` that is nowhere yet.
pub(super) fn copy(source: &Path, users: &Path) -> Result<OwnedFd, StorageError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let failed = |what| StorageError::io(what, source);
    let tree = open_tree(CWD, source, flags)
        .map_err(io::Error::from)
        .map_err(failed("copying the mount at"))?;
    let users = fs::File::open(users).map_err(StorageError::io("opening", users))?;
    map(&tree, &users.into()).map_err(failed("mapping the ids of"))?;
    Ok(tree)
}

/// Gives a copy its place.
pub(super) fn attach(tree: &OwnedFd, target: &Path) -> Result<(), StorageError> {
    move_mount(
        tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(io::Error::from)
    .map_err(StorageError::io("mounting at", target))
}

#[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]
fn map(tree: &OwnedFd, users: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(users.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: the path is a C string, and `attributes` is as long as the kernel is told; both are
    // only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

//! One container's root file system.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::acting::Acting;
use super::{Disk, Disks, Scratch, StorageError, blocking, mapped};
use crate::user_namespace::Users;

/// The mounts and folders of a root file system, whole or in part: [`Rootfs::remove`] takes down
/// what is there.
#[derive(Debug, Clone)]
pub(crate) struct Rootfs {
    /// The read-only disk below.
    pub(crate) disk: Disk,
    lower: PathBuf,
    root: PathBuf,
    layer: PathBuf,
    /// Where the layer is with the ids of `users`.
    mapped_layer: PathBuf,
    /// The sandbox's user namespace, and who is root in it: what it has on disk under their usual ids.
    users: Option<Users>,
}

impl Rootfs {
    /// Where a container's root will be: mount points in `folder`, its writable layer on `scratch`.
    /// In a user namespace its files have the ids on the disk that they have in there.
    pub(crate) fn new(
        disk: Disk,
        folder: &Path,
        scratch: &Scratch,
        name: &str,
        users: Option<Users>,
    ) -> Self {
        Self {
            lower: folder.join("lower"),
            root: folder.join("rootfs"),
            layer: scratch.path().join(name),
            mapped_layer: folder.join("layer"),
            users,
            disk,
        }
    }

    /// The mount point.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// The folder of what was written.
    pub(crate) fn upper(&self) -> PathBuf {
        self.layer.join("upper")
    }

    /// Mounts it.
    ///
    /// # Errors
    ///
    /// When the disk holds no EROFS file system, or the overlay is refused.
    pub(crate) async fn mount(&self) -> Result<(), StorageError> {
        let this = self.clone();
        blocking(move || this.mount_now()).await
    }

    fn mount_now(&self) -> Result<(), StorageError> {
        let (upper, work) = (self.upper(), self.layer.join("work"));
        for folder in [&self.lower, &self.root, &upper, &work] {
            fs::create_dir_all(folder).map_err(StorageError::io("making", folder))?;
        }
        let lower = if self.disk.node.is_dir() {
            &self.disk.node
        } else {
            self.mount_disk()?
        };
        like(lower, &upper).map_err(StorageError::io(
            "copying the root's owner and mode to",
            &upper,
        ))?;
        let (lower, layer) = match &self.users {
            None => (lower, &self.layer),
            Some(users) => self.map_layers(lower, &users.namespace("user"))?,
        };
        // The layer lives and dies with the sandbox: nothing is gained by waiting for it to be
        // written ("volatile").
        let options = format!(
            "lowerdir={},upperdir={},workdir={},volatile",
            lower.display(),
            layer.join("upper").display(),
            layer.join("work").display()
        );
        // It copies files up as whoever mounts it.
        let _acting = self
            .act()
            .map_err(StorageError::io("mounting", &self.root))?;
        mount(
            Some("overlay"),
            &self.root,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .map_err(|source| StorageError::Mount {
            what: "the overlay",
            path: self.root.clone(),
            source,
        })
    }

    /// Has the thread make files as the root that they are for, until the answer is dropped.
    fn act(&self) -> io::Result<Option<Acting>> {
        let users = self.users.as_ref();
        users
            .map(|users| Acting::as_root_of(&users.ids))
            .transpose()
    }

    fn mount_disk(&self) -> Result<&PathBuf, StorageError> {
        mount_image(&self.disk, &self.lower)?;
        Ok(&self.lower)
    }

    /// Both layers with the ids of the user namespace at `users`: overlayfs, which cannot have its ids
    /// mapped itself, takes its files' from them.
    fn map_layers(&self, lower: &Path, users: &Path) -> Result<(&PathBuf, &PathBuf), StorageError> {
        let folder = &self.mapped_layer;
        fs::create_dir_all(folder).map_err(StorageError::io("making", folder))?;
        let (mapped_lower, mapped_layer) = (
            mapped::copy(lower, users)?,
            mapped::copy(&self.layer, users)?,
        );
        // The copy takes the disk's place.
        unmount(&self.lower)?;
        mapped::attach(&mapped_lower, &self.lower)?;
        mapped::attach(&mapped_layer, folder)?;
        Ok((&self.lower, folder))
    }

    /// The real path of `path` in the root file system, where the container's processes would find
    /// it; a folder is made if there is nothing. Blocking.
    ///
    /// # Errors
    ///
    /// When it leads nowhere.
    pub(crate) fn folder_at(&self, path: &Path) -> Result<PathBuf, StorageError> {
        match resolve_in(&self.root, path) {
            Err(StorageError::InImage { source, .. })
                if source.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(self.root.clone());
        };
        let folder = self.folder_at(parent)?.join(name);
        let made = self.act().and_then(|_acting| fs::create_dir(&folder));
        match made {
            Ok(()) => Ok(folder),
            // A link that leads nowhere: there is no folder behind it to make.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                resolve_in(&self.root, path)
            }
            Err(error) => Err(StorageError::io("making", &folder)(error)),
        }
    }

    /// Unmounts everything, deletes what was written, and lets go of the disk. Idempotent.
    ///
    /// # Errors
    ///
    /// The first of what could not be done; the rest is tried all the same.
    pub(crate) async fn remove(self, disks: &Disks) -> Result<(), StorageError> {
        let disk = self.disk.clone();
        let removed = blocking(move || self.remove_now()).await;
        let detached = disks.detach(&disk).await;
        removed.and(detached)
    }

    /// Unmounts everything, and leaves what was written.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(crate) async fn unmount(self) -> Result<(), StorageError> {
        blocking(move || self.unmount_now()).await
    }

    fn unmount_now(&self) -> Result<(), StorageError> {
        let layers = unmount(&self.root).and(unmount(&self.mapped_layer));
        layers.and(unmount(&self.lower))
    }

    fn remove_now(&self) -> Result<(), StorageError> {
        let unmounted = self.unmount_now();
        let deleted = delete(&self.layer);
        for mount_point in [&self.root, &self.lower, &self.mapped_layer] {
            match fs::remove_dir(mount_point) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.map_err(StorageError::io("removing", mount_point))?,
            }
        }
        unmounted.and(deleted)
    }
}

/// Mounts the EROFS file system on a disk, read-only.
pub(super) fn mount_image(disk: &Disk, path: &Path) -> Result<(), StorageError> {
    // Read where it lies: nothing of it is kept in this guest's page cache.
    let options = disk.memory.then_some("dax=always");
    mount(
        Some(&disk.node),
        path,
        Some("erofs"),
        MsFlags::MS_RDONLY,
        options,
    )
    .map_err(|source| StorageError::Mount {
        what: "the image's disk",
        path: path.to_owned(),
        source,
    })
}

/// Where `path` leads in the tree at `root`, links followed as a process that has this root would.
pub(super) fn resolve_in(root: &Path, path: &Path) -> Result<PathBuf, StorageError> {
    let failed = |source: Errno| StorageError::InImage {
        path: path.to_owned(),
        source: source.into(),
    };
    let folder = open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = openat2(&folder, path, how).map_err(failed)?;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    fs::read_link(&link).map_err(StorageError::io("reading", Path::new(&link)))
}

/// The top folder of an overlay is the upper layer's, whatever the image says of its root.
fn like(model: &Path, folder: &Path) -> io::Result<()> {
    let metadata = fs::metadata(model)?;
    std::os::unix::fs::chown(folder, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(folder, metadata.permissions())
}

pub(super) fn unmount(path: &Path) -> Result<(), StorageError> {
    match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
        // Not a mount point, or not there.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        // Someone's working directory, perhaps. The mount goes when its last user does.
        Err(Errno::EBUSY) => umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
            .map_err(|source| StorageError::Unmount {
                path: path.to_owned(),
                source,
            }),
        Err(source) => Err(StorageError::Unmount {
            path: path.to_owned(),
            source,
        }),
    }
}

fn delete(path: &Path) -> Result<(), StorageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(StorageError::io("deleting", path)),
    }
}

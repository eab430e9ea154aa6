//! The volumes of a sandbox: folders and files of the host that its guest can find.
//!
//! Each is opened once, whichever containers mount it, and taken away with the last of them. A
//! container is known here by its id alone. Adding and removing exclude each other, so no container
//! loses a volume that another one gives back at the same moment.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};

use super::SandboxError;
use super::changes::Changes;
use crate::id::SandboxId;
use crate::vm::Vm;

/// Whether mounts that the host makes later appear in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Propagation {
    /// They do not: a volume is what it was when its first container was created.
    Private,
    /// They do.
    HostToContainer,
}

/// A folder or file of the host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Volume {
    /// Its name in the sandbox: 1 to 20 characters of `[A-Za-z0-9._-]`.
    pub(crate) name: String,
    /// Where it is, without symbolic links.
    pub(crate) path: PathBuf,
    /// This user does not write to it.
    pub(crate) read_only: bool,
    /// Nobody writes to it, but to what is mounted in it.
    pub(crate) read_only_root: bool,
    /// What appears in it.
    pub(crate) propagation: Propagation,
}

/// Who uses which volume.
#[derive(Debug)]
pub(crate) struct Volumes {
    sandbox: SandboxId,
    changes: Arc<Changes>,
    by_name: tokio::sync::Mutex<BTreeMap<String, Uses>>,
}

#[derive(Debug, Default)]
struct Uses {
    users: Vec<String>,
    /// The guest may write to it.
    writable: bool,
}

impl Volumes {
    /// A sandbox's, none yet.
    pub(super) fn new(sandbox: SandboxId, changes: Arc<Changes>) -> Self {
        Self {
            sandbox,
            changes,
            by_name: tokio::sync::Mutex::default(),
        }
    }

    /// Lets the guest find these volumes for `user`.
    ///
    /// # Errors
    ///
    /// When one cannot be opened, or the VMM does not take it. Those before it stay in use until
    /// they are [released](Self::release).
    pub(crate) async fn acquire(
        &self,
        vm: &Arc<Vm>,
        user: &str,
        volumes: Vec<Volume>,
    ) -> Result<(), SandboxError> {
        let mut by_name = self.by_name.lock().await;
        for volume in volumes {
            let known = by_name.get(&volume.name);
            let enough = known.is_some_and(|uses| uses.writable || volume.read_only);
            if !enough {
                self.add(vm, &volume).await?;
            }
            let uses = by_name.entry(volume.name).or_default();
            uses.writable |= !volume.read_only;
            if !uses.users.iter().any(|known| known == user) {
                uses.users.push(user.to_owned());
            }
        }
        Ok(())
    }

    /// Notes what a container of an earlier daemon uses.
    pub(crate) async fn adopt(&self, vm: Option<&Arc<Vm>>, user: &str, volumes: Vec<Volume>) {
        let mut by_name = self.by_name.lock().await;
        for volume in volumes {
            let written = by_name.get(&volume.name).is_some_and(|uses| uses.writable);
            if let Some(vm) = vm {
                // Whatever is there now is what the kubelet goes on changing.
                let opened = open(&volume.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
                match opened {
                    Ok(fd) => self.follow(vm, &volume, written, &fd),
                    Err(error) => tracing::debug!(%error, "a volume is not watched any more"),
                }
            }
            let uses = by_name.entry(volume.name).or_default();
            uses.writable |= !volume.read_only;
            uses.users.push(user.to_owned());
        }
    }

    /// Takes away what only `user` has used. Idempotent.
    ///
    /// # Errors
    ///
    /// When the VMM does not answer; the volumes are then still in use.
    pub(crate) async fn release(&self, vm: &Vm, user: &str) -> Result<(), crate::vm::VmError> {
        let mut by_name = self.by_name.lock().await;
        let alone = |uses: &Uses| uses.users.iter().all(|known| known == user);
        let unused: Vec<String> = by_name
            .iter()
            .filter(|(_, uses)| alone(uses))
            .map(|(name, _)| name.clone())
            .collect();
        for name in unused {
            self.changes.forget(&self.sandbox, &name);
            vm.remove_volume(&name).await?;
            by_name.remove(&name);
        }
        for uses in by_name.values_mut() {
            uses.users.retain(|known| known != user);
        }
        Ok(())
    }

    /// Takes away what an earlier daemon has added and no container uses.
    ///
    /// # Errors
    ///
    /// When the VMM does not answer.
    pub(crate) async fn remove_unused(&self, vm: &Vm) -> Result<(), crate::vm::VmError> {
        let by_name = self.by_name.lock().await;
        for name in vm.status().await?.volumes {
            if !by_name.contains_key(&name) {
                vm.remove_volume(&name).await?;
            }
        }
        Ok(())
    }

    async fn add(&self, vm: &Arc<Vm>, volume: &Volume) -> Result<(), SandboxError> {
        let asked = volume.clone();
        let opened = tokio::task::spawn_blocking(move || open_volume(&asked)).await;
        let fd = opened
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(SandboxError::io("opening", &volume.path))?;
        // Before the guest can look, so that no change falls between.
        self.follow(vm, volume, false, &fd);
        let descriptor = format!("volume-{}", volume.name);
        vm.send(vec![(descriptor.clone(), fd)]).await?;
        Ok(vm
            .add_volume(&volume.name, &descriptor, volume.read_only)
            .await?)
    }

    /// Tells the guest of changes, unless it makes them itself.
    fn follow(&self, vm: &Arc<Vm>, volume: &Volume, written: bool, fd: &OwnedFd) {
        if written || !volume.read_only {
            self.changes.forget(&self.sandbox, &volume.name);
            return;
        }
        let watched = self
            .changes
            .watch(fd.as_fd(), &self.sandbox, &volume.name, vm);
        if let Err(error) = watched {
            let (sandbox_id, path) = (&self.sandbox, volume.path.display());
            tracing::warn!(%sandbox_id, %path, %error, "changes of a volume raise no event in the guest");
        }
    }
}

/// Opens a volume. What is to be private is a copy of the tree of mounts, attached nowhere: it shows
/// in no mount table, keeps nobody from unmounting the original, and goes with its descriptor.
fn open_volume(volume: &Volume) -> io::Result<OwnedFd> {
    let path = &volume.path;
    match volume.propagation {
        Propagation::HostToContainer => {
            Ok(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
        }
        Propagation::Private => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            let tree = open_tree(CWD, path, flags)?;
            // Nothing that happens to the mounts which were copied happens to the copies.
            let private = libc::mount_attr {
                propagation: libc::MS_PRIVATE,
                ..NO_CHANGE
            };
            set_attributes(&tree, &private, libc::AT_RECURSIVE)?;
            if volume.read_only_root {
                let read_only = libc::mount_attr {
                    attr_set: libc::MOUNT_ATTR_RDONLY,
                    ..NO_CHANGE
                };
                set_attributes(&tree, &read_only, 0)?;
            }
            Ok(tree)
        }
    }
}

const NO_CHANGE: libc::mount_attr = libc::mount_attr {
    attr_set: 0,
    attr_clr: 0,
    propagation: 0,
    userns_fd: 0,
};

/// Changes a tree of mounts: its root, or with `AT_RECURSIVE` every one of it.
#[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]
fn set_attributes(
    tree: &OwnedFd,
    attributes: &libc::mount_attr,
    recursive: libc::c_int,
) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | recursive;
    // SAFETY: the path is a C string, and `attributes` is as long as the kernel is told; both are
    // only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the host has something mounted below a folder (proc(5), `mountinfo`, the fifth field).
pub(crate) fn has_submounts(folder: &Path) -> bool {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    is_above_a_mount(folder, &table)
}

fn is_above_a_mount(folder: &Path, table: &[u8]) -> bool {
    let mut lines = table.split(|byte| *byte == b'\n');
    lines.any(|line| {
        let point = line.split(|byte| *byte == b' ').nth(4).unwrap_or_default();
        let point = unescaped(point);
        let point = Path::new(OsStr::from_bytes(&point));
        point != folder && point.starts_with(folder)
    })
}

/// Without the escapes of blanks and backslashes: three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let (byte, left) = match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                left @ ..,
            ] => ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), left),
            _ => (*first, after),
        };
        bytes.push(byte);
        rest = left;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(path: &Path, propagation: Propagation) -> Volume {
        Volume {
            name: "v".into(),
            path: path.to_owned(),
            read_only: false,
            read_only_root: false,
            propagation,
        }
    }

    #[test]
    fn mounts_are_found_below_a_folder_and_not_beside_it() {
        let table = b"36 35 98:0 / /mnt rw,noatime shared:1 - ext4 /dev/root rw\n\
            37 36 0:30 / /mnt/a\\040b/tmpfs rw - tmpfs none rw\n";
        let above = |folder: &str| is_above_a_mount(Path::new(folder), table);
        assert!(above("/mnt"));
        assert!(above("/mnt/a b"));
        assert!(!above("/mnt/a"));
        assert!(!above("/mnt/a b/tmpfs"));
        assert!(!is_above_a_mount(Path::new("/mnt"), b"36 35 98:0\n"));
    }

    #[test]
    fn a_read_only_root_leaves_what_is_mounted_in_it_as_it_is() {
        if !rustix::process::geteuid().is_root() {
            println!("\nskipped a_read_only_root: needs root");
            return;
        }
        let open = |read_only_root| {
            // A file system that has another one mounted in it on every machine.
            let volume = Volume {
                read_only_root,
                ..volume(Path::new("/"), Propagation::Private)
            };
            open_volume(&volume).unwrap()
        };
        let flags = |tree: &OwnedFd, path: &str| {
            let file = rustix::fs::openat(tree, path, OFlags::PATH, Mode::empty()).unwrap();
            rustix::fs::fstatvfs(file).unwrap().f_flag
        };
        let read_only = |tree: &OwnedFd, path: &str| {
            flags(tree, path).contains(rustix::fs::StatVfsMountFlags::RDONLY)
        };
        let tree = open(true);
        assert!(read_only(&tree, "."));
        assert_eq!(read_only(&tree, "proc"), read_only(&open(false), "proc"));
        assert!(has_submounts(Path::new("/")));
    }

    #[test]
    fn an_opened_volume_shows_in_no_mount_table() {
        if !rustix::process::geteuid().is_root() {
            return isopod_tests::skip("needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let table = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = table().lines().count();
        let opened: Vec<_> = (0..20)
            .map(|_| open_volume(&volume(dir.path(), Propagation::Private)).unwrap())
            .collect();
        assert!(table().lines().count() < before + 20);
        let below = rustix::fs::openat(&opened[0], "file", OFlags::RDONLY, Mode::empty());
        below.unwrap();
        open_volume(&volume(&dir.path().join("file"), Propagation::Private)).unwrap();
        open_volume(&volume(dir.path(), Propagation::HostToContainer)).unwrap();
        open_volume(&volume(&dir.path().join("missing"), Propagation::Private)).unwrap_err();
    }
}

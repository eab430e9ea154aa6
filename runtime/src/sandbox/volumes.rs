//! The volumes of a sandbox: folders and files of the host that its guest can find.
//!
//! Each is opened once, whichever containers mount it, and taken away with the last of them. A
//! container is known here by its id alone. Adding and removing exclude each other, so no container
//! loses a volume that another one gives back at the same moment.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};

use super::SandboxError;
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
    /// What appears in it.
    pub(crate) propagation: Propagation,
}

/// Who uses which volume.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    by_name: tokio::sync::Mutex<BTreeMap<String, Uses>>,
}

#[derive(Debug, Default)]
struct Uses {
    users: Vec<String>,
    /// The guest may write to it.
    writable: bool,
}

impl Volumes {
    /// Lets the guest find these volumes for `user`.
    ///
    /// # Errors
    ///
    /// When one cannot be opened, or the VMM does not take it. Those before it stay in use until
    /// they are [released](Self::release).
    pub(crate) async fn acquire(
        &self,
        vm: &Vm,
        user: &str,
        volumes: Vec<Volume>,
    ) -> Result<(), SandboxError> {
        let mut by_name = self.by_name.lock().await;
        for volume in volumes {
            let known = by_name.get(&volume.name);
            let enough = known.is_some_and(|uses| uses.writable || volume.read_only);
            if !enough {
                add(vm, &volume).await?;
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
    pub(crate) async fn adopt(&self, user: &str, volumes: Vec<Volume>) {
        let mut by_name = self.by_name.lock().await;
        for volume in volumes {
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
}

async fn add(vm: &Vm, volume: &Volume) -> Result<(), SandboxError> {
    let (path, propagation) = (volume.path.clone(), volume.propagation);
    let opened = tokio::task::spawn_blocking(move || open_volume(&path, propagation)).await;
    let fd = opened
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(SandboxError::io("opening", &volume.path))?;
    let descriptor = format!("volume-{}", volume.name);
    vm.send(vec![(descriptor.clone(), fd)]).await?;
    Ok(vm
        .add_volume(&volume.name, &descriptor, volume.read_only)
        .await?)
}

/// Opens a volume. What is to be private is a copy of the tree of mounts, attached nowhere: it shows
/// in no mount table, keeps nobody from unmounting the original, and goes with its descriptor.
fn open_volume(path: &Path, propagation: Propagation) -> io::Result<OwnedFd> {
    match propagation {
        Propagation::HostToContainer => {
            Ok(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
        }
        Propagation::Private => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            let tree = open_tree(CWD, path, flags)?;
            make_private(&tree)?;
            Ok(tree)
        }
    }
}

/// Nothing that happens to the mounts which were copied happens to the copies.
#[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]
fn make_private(tree: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string, and `attributes` is as long as the kernel is told; both are
    // only read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            .map(|_| open_volume(dir.path(), Propagation::Private).unwrap())
            .collect();
        assert!(table().lines().count() < before + 20);
        let below = rustix::fs::openat(&opened[0], "file", OFlags::RDONLY, Mode::empty());
        below.unwrap();
        open_volume(&dir.path().join("file"), Propagation::Private).unwrap();
        open_volume(dir.path(), Propagation::HostToContainer).unwrap();
        open_volume(&dir.path().join("missing"), Propagation::Private).unwrap_err();
    }
}

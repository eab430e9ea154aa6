//! The peer: the reader as the only program of a guest, under QEMU's microvm with the tree on
//! virtio-blk.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{EXPECTED, forget, image};
use crate::bench::Guest;
use crate::bench::program::Figures;
use crate::bench::program::alone::{FOLDERS, Output, script};
use crate::bench::qemu::{self, Disk};
use crate::environment;

/// The disk's serial.
const TREE: &str = "tree";

/// A guest that reads, and its disk.
pub(super) struct Peer {
    guest: Guest,
    /// Holds the tree, on the disk that the daemon's image is on.
    folder: TempDir,
}

impl Peer {
    /// Puts the disk into `folder`, while this is kept.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let storage = environment::path(environment::IMAGES)?;
        let folder = tempfile::Builder::new()
            .prefix("peer-")
            .tempdir_in(folder)?;
        let (from, to) = (storage.join(image::EXT4), folder.path().join(image::EXT4));
        fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
        let guest = prepare()?;
        Ok(Self { guest, folder })
    }

    /// One fresh guest.
    pub(super) fn measure(&self) -> Result<Figures> {
        let output = Output::new()?;
        forget(self.folder.path())?;
        let tree = Disk {
            serial: TREE,
            path: &self.folder.path().join(image::EXT4),
            read_only: true,
        };
        let _qemu = qemu::with_disks(&self.guest, &[tree, output.disk()])?;
        output.figures(&EXPECTED)
    }
}

/// The reader has the tree for its root, as in a container.
fn prepare() -> Result<Guest> {
    let (reader, tree, large) = (image::READER, image::TREE, image::LARGE);
    let script = script(
        &format!("$b mount -t ext4 -o ro ${TREE} /mnt && $b mount -t proc proc /mnt/proc"),
        &format!("$b chroot /mnt {reader} {tree} {large}"),
    );
    Guest::of_script(&FOLDERS, &script, &[])
}

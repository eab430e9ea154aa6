//! The peer: the reader as the only program of a guest, under QEMU's microvm with the tree on
//! virtio-blk. What it says goes to a second disk.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{Figures, LIMIT, forget, image, parse};
use crate::bench::Guest;
use crate::bench::qemu::{self, Disk};
use crate::environment;
use crate::wait::wait_for;

/// Bytes of the disk that the reader's output goes to.
const OUTPUT_BYTES: u64 = 4096;

/// The disks' serials.
const TREE: &str = "tree";
const OUTPUT: &str = "output";

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
        let folder = tempfile::Builder::new()
            .prefix("peer-")
            .tempdir_in("/run")?;
        let output = folder.path().join("output");
        File::create(&output)?.set_len(OUTPUT_BYTES)?;
        forget(self.folder.path())?;
        let tree = Disk {
            serial: TREE,
            path: &self.folder.path().join(image::EXT4),
            read_only: true,
        };
        let heard = Disk {
            serial: OUTPUT,
            path: &output,
            read_only: false,
        };
        let _qemu = qemu::with_disks(&self.guest, &[tree, heard])?;
        let said = || {
            let bytes = fs::read(&output).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        wait_for("QEMU's reader", LIMIT, || parse(&said()))
            .with_context(|| format!("its reader said {:?}", said().trim_end_matches('\0')))?
    }
}

fn prepare() -> Result<Guest> {
    Guest::of_script(&["bin", "dev", "sys", "mnt"], &script())
}

/// PID 1. The reader has the tree for its root, as in a container.
fn script() -> String {
    let (reader, tree, large) = (image::READER, image::TREE, image::LARGE);
    format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t devtmpfs dev /dev\n\
         exec < /dev/null > /dev/null 2>&1\n\
         $b mount -t sysfs sys /sys\n\
         for disk in /sys/block/vd*; do\n\
             case $($b cat $disk/serial) in\n\
                 {TREE}) tree=/dev/${{disk##*/}} ;;\n\
                 {OUTPUT}) output=/dev/${{disk##*/}} ;;\n\
             esac\n\
         done\n\
         $b mount -t ext4 -o ro $tree /mnt\n\
         $b mount -t proc proc /mnt/proc\n\
         $b chroot /mnt {reader} {tree} {large} > $output 2>&1\n\
         while :; do $b sleep 1000; done\n"
    )
}

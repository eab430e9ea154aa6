//! The program as all that a guest of QEMU's runs. What it says goes to a disk.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{Expected, Figures, LIMIT, parse};
use crate::bench::qemu::Disk;
use crate::wait::wait_for;

/// Bytes of the disk, and its serial.
const BYTES: u64 = 4096;
const OUTPUT: &str = "output";

/// Folders that [`script`] needs in the initramfs.
pub(in crate::bench) const FOLDERS: [&str; 5] = ["bin", "dev", "proc", "sys", "mnt"];

/// PID 1: mounts what there is to mount, with busybox as `$b` and disks under the names that are their
/// serials, and runs a command.
pub(in crate::bench) fn script(mount: &str, command: &str) -> String {
    format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t devtmpfs dev /dev\n\
         exec < /dev/null > /dev/null 2>&1\n\
         $b mount -t sysfs sys /sys\n\
         for disk in /sys/block/vd*; do\n\
             eval $($b cat $disk/serial)=/dev/${{disk##*/}}\n\
         done\n\
         {{ {mount} && {command}; }} > ${OUTPUT} 2>&1\n\
         while :; do $b sleep 1000; done\n"
    )
}

/// The disk for one guest.
pub(in crate::bench) struct Output {
    path: PathBuf,
    /// Holds it.
    _folder: TempDir,
}

impl Output {
    pub(in crate::bench) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("peer-")
            .tempdir_in("/run")?;
        let path = folder.path().join(OUTPUT);
        File::create(&path)?.set_len(BYTES)?;
        Ok(Self {
            path,
            _folder: folder,
        })
    }

    /// For the guest.
    pub(in crate::bench) fn disk(&self) -> Disk<'_> {
        Disk {
            serial: OUTPUT,
            path: &self.path,
            read_only: false,
        }
    }

    /// Waits for what the program says.
    pub(in crate::bench) fn figures(&self, expected: &[Expected]) -> Result<Figures> {
        let said = || {
            let bytes = fs::read(&self.path).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        wait_for("QEMU's program", LIMIT, || parse(&said(), expected))
            .with_context(|| format!("its program said {:?}", said().trim_end_matches('\0')))?
    }
}

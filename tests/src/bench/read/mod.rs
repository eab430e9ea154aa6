//! What reading an image costs a guest: ours, an EROFS disk of several files under an overlay, against
//! the same tree on ext4 over QEMU's virtio-blk.
//!
//! ```text
//!  container: overlay ── EROFS ── virtio-blk (PCI)  ── isopod-vmm ── data blobs ─┐
//!                                                                                ├ ext4, a disk in memory
//!  peer.rs    ext4 ────────────── virtio-blk (MMIO) ── QEMU ── one image ────────┘
//! ```
//!
//! - [`image`]: the tree, both ways; made before, where instructions are fast.
//! - [`peer`]: the same kernel, and the same reader, under QEMU's microvm.
//!
//! Cold, neither the guest nor the host has anything of the files in memory; warm, the guest has all.
//! The host's disk is in memory as well, since waiting is no instruction: what counts is what a read
//! makes guest, VMM and host do, not how long a real disk takes.

mod image;
mod peer;

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

pub use self::image::build as read_images;
use super::PROCESSORS;
use super::program::container::{Pods, Program};
use super::program::inside::BLOCK;
use super::program::{Expected, Figures, patiently};
use super::table::{Row, Table};
use crate::node::{self, DataDir, Options};

/// The host's disk, in MiB: the store's image, the peer's, and what two pods write.
const DISK_MIB: u32 = 512;

/// Random reads of a block, and their bytes.
pub const RANDOM_READS: u32 = 1024;
const RANDOM_BYTES: u64 = RANDOM_READS as u64 * BLOCK as u64;

/// The names of what is measured: in the reader's output, in rows, of the peer's rows.
const NAMES: [(&str, &str, &str, &str); 4] = [
    (
        "tar_cold",
        "read.tar_cold",
        "read.ext4_tar_cold",
        "a tree of small files, read as tar does, nothing cached",
    ),
    (
        "tar_warm",
        "read.tar_warm",
        "read.ext4_tar_warm",
        "the same once more",
    ),
    (
        "random_cold",
        "read.random_cold",
        "read.ext4_random_cold",
        "1024 random reads of 4 KiB, nothing cached",
    ),
    (
        "random_warm",
        "read.random_warm",
        "read.ext4_random_warm",
        "the same once more",
    ),
];

/// What the reader says, in the order of [`NAMES`].
const EXPECTED: [Expected; NAMES.len()] = [
    (NAMES[0].0, image::TREE_BYTES),
    (NAMES[1].0, image::TREE_BYTES),
    (NAMES[2].0, RANDOM_BYTES),
    (NAMES[3].0, RANDOM_BYTES),
];

/// Measures everything about reading, `repetitions` times.
///
/// # Errors
/// A guest did not answer, or the daemon failed.
pub fn read(repetitions: u32) -> Result<Table> {
    let (mut all_ours, mut all_peers) = (Vec::new(), Vec::new());
    let options = Options::kvm()
        .data(DataDir::Disk { mib: DISK_MIB })
        .vm("max_vcpus", PROCESSORS);
    node::run(options, |node| {
        let program = Program {
            image: image::NAME,
            command: &[image::READER, image::TREE, image::LARGE],
            mounts: &[],
            expected: &EXPECTED,
        };
        let pods = Pods::new(node, program)?;
        let images = node.root_dir().join("images");
        let peer = peer::Peer::new(node.root_dir())?;
        // The first of each does not count, and they alternate, as everywhere here.
        for repetition in 0..=repetitions {
            let ours = patiently("vmm", || {
                from_disk("vmm", || pods.measure(|| forget(&images)))
            })?;
            let theirs = patiently("qemu", || from_disk("qemu", || peer.measure()))?;
            if repetition > 0 {
                all_ours.push(ours);
                all_peers.push(theirs);
            }
        }
        Ok(())
    })?;
    let mut table = Table {
        rows: Vec::new(),
        ratios: Vec::new(),
    };
    for (index, (_, name, peers_name, what)) in NAMES.into_iter().enumerate() {
        let times = |all: &[Figures]| all.iter().map(|figures| figures[index]).collect();
        table.rows.push(Row::times(name, what, times(&all_ours)));
        table.rows.push(Row::times(
            peers_name,
            "of ext4 under QEMU",
            times(&all_peers),
        ));
        table.ratios.push((name, "ext4", peers_name));
    }
    Ok(table)
}

/// The files did come from the host's disk.
fn from_disk(what: &str, measure: impl FnOnce() -> Result<Figures>) -> Result<Figures> {
    let before = disk_reads()?;
    let figures = measure()?;
    let kib = disk_reads()? - before;
    eprintln!("{what} {figures:?}, {kib} KiB from the host's disk");
    ensure!(
        kib >= image::TREE_BYTES >> 10,
        "the host had the files in memory"
    );
    Ok(figures)
}

/// KiB that the host has read from disks in memory (kernel documentation, `admin-guide/iostats`).
fn disk_reads() -> Result<u64> {
    let text = fs::read_to_string("/proc/diskstats").context("reading /proc/diskstats")?;
    let sectors = |line: &str| -> Option<u64> {
        let mut fields = line.split_whitespace().skip(2);
        fields.next()?.starts_with("loop").then_some(())?;
        fields.nth(2)?.parse().ok()
    };
    Ok(text.lines().filter_map(sectors).sum::<u64>() / 2)
}

/// Makes the host forget the contents of every file in a folder. Those alone: a program that has to be
/// read again comes from the lab's root, and waiting is no instruction.
fn forget(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            forget(&entry.path())?;
        } else if kind.is_file() {
            let file = File::open(entry.path())?;
            // What is dirty cannot be forgotten.
            file.sync_all()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

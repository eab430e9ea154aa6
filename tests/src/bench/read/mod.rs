//! What reading an image costs a guest: ours, an EROFS disk of several files under an overlay, against
//! the same tree on ext4 over QEMU's virtio-blk.
//!
//! ```text
//!  ours.rs   container: overlay ── EROFS ── virtio-blk (PCI)  ── isopod-vmm ── data blobs ─┐
//!                                                                                          ├ ext4, a disk in memory
//!  peer.rs   PID 1: ext4 ───────────────── virtio-blk (MMIO) ── QEMU ── one image ─────────┘
//! ```
//!
//! - [`image`]: the tree, both ways; made before, where instructions are fast.
//! - [`ours`]: a pod of the daemon, whose container reads.
//! - [`peer`]: the same kernel, and the same reader, under QEMU's microvm.
//!
//! Cold, neither the guest nor the host has anything of the files in memory; warm, the guest has all.
//! The host's disk is in memory as well, since waiting is no instruction: what counts is what a read
//! makes guest, VMM and host do, not how long a real disk takes.

mod image;
mod ours;
mod peer;

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

pub use self::image::build as read_images;
use super::table::{Row, Table};
use crate::node::{self, DataDir, Options};

/// The host's disk, in MiB: the store's image, the peer's, and what two pods write.
const DISK_MIB: u32 = 512;

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

/// What one guest took, in the order of [`NAMES`].
type Figures = [Duration; NAMES.len()];

/// How often one guest is tried: about every second one stands still.
const ATTEMPTS: u32 = 12;

/// How long a guest may take, on the clock of the lab: several times what it takes. A guest that spins takes
/// minutes for a second of it.
const LIMIT: Duration = Duration::from_secs(5);

/// Measures everything about reading, `repetitions` times.
///
/// # Errors
/// A guest did not answer, or the daemon failed.
pub fn read(repetitions: u32) -> Result<Table> {
    let (mut all_ours, mut all_peers) = (Vec::new(), Vec::new());
    let options = Options::kvm().data(DataDir::Disk { mib: DISK_MIB });
    node::run(options, |node| {
        let pods = ours::Pods::new(node)?;
        let peer = peer::Peer::new(node.root_dir())?;
        // The first of each does not count, and they alternate, as everywhere here.
        for repetition in 0..=repetitions {
            let ours = patiently("vmm", || pods.measure())?;
            let theirs = patiently("qemu", || peer.measure())?;
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

/// Measures once more when a guest has stood still, under either VMM: see `Clock` of `cargo xtask
/// bench`.
fn patiently(what: &str, measure: impl Fn() -> Result<Figures>) -> Result<Figures> {
    let once = || {
        let before = disk_reads()?;
        let figures = measure()?;
        let kib = disk_reads()? - before;
        eprintln!("{what} {figures:?}, {kib} KiB from the host's disk");
        ensure!(
            kib >= image::TREE_BYTES >> 10,
            "the host had the files in memory"
        );
        Ok(figures)
    };
    for _ in 1..ATTEMPTS {
        match once() {
            Ok(figures) => return Ok(figures),
            Err(error) => eprintln!("{what} is measured again: {error:#}"),
        }
    }
    once()
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

/// What the reader said, if it has said everything.
fn parse(text: &str) -> Option<Result<Figures>> {
    let time = |what: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        let line = line.with_context(|| format!("no {what} in {text:?}"))?;
        let mut words = line.split_whitespace();
        let (nanos, bytes) = words.next().zip(words.next()).context("two numbers")?;
        let expected = match what.starts_with("tar") {
            true => image::TREE_BYTES,
            false => 1024 * 4096,
        };
        ensure!(bytes == expected.to_string(), "{line:?} of {what}");
        Ok(Duration::from_nanos(nanos.parse()?))
    };
    let (last, ..) = NAMES[NAMES.len() - 1];
    let (_, end) = text.split_once(last)?;
    end.contains('\n').then(|| {
        let mut figures = Figures::default();
        for (figure, (what, ..)) in figures.iter_mut().zip(NAMES) {
            *figure = time(what)?;
        }
        Ok(figures)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_count_when_all_are_there_and_of_the_right_bytes() {
        let tree = image::TREE_BYTES;
        let text = format!(
            "tar_cold 4000 {tree}\ntar_warm 3000 {tree}\nrandom_cold 2000 4194304\n\
             random_warm 1000 4194304"
        );
        assert!(parse(&text).is_none(), "the last line may go on");
        let figures = parse(&format!("{text}\n\0\0")).unwrap().unwrap();
        assert_eq!(figures, [4, 3, 2, 1].map(Duration::from_micros));
        let wrong = format!("{text}\n").replace(&format!("3000 {tree}"), "3000 7");
        assert!(parse(&wrong).unwrap().is_err());
    }
}

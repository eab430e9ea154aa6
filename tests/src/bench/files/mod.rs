//! What a pod's volumes are capable of: our virtio-fs against Debian's `virtiofsd` under QEMU.
//!
//! ```text
//!  container: program ── virtio-fs (PCI)  ── isopod-vmm ─────────────────┐
//!                                                                        ├ ext4, a disk in memory
//!  peer.rs    program ── virtio-fs (MMIO) ── QEMU, vhost-user, virtiofsd ┘
//! ```
//!
//! - [`image`]: the program as an image; made before, where instructions are fast.
//! - [`peer`]: the same kernel and the same program under QEMU's microvm.
//!
//! A guest has nothing of the host's files in its memory that it may believe without asking: neither
//! names nor attributes, and pages of a file while it is open, or until it has changed. That is what
//! pods need whose volumes change on the host, and what both are set to. Cold, the guest has no page
//! of a file; the host has all of them, since what is measured is the way between the two.

mod image;
mod peer;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use isopod_proto::cri::Mount;

pub use self::image::build as files_images;
use super::PROCESSORS;
use super::program::container::{Pods, Program};
use super::program::inside::BLOCK;
use super::program::{Expected, patiently};
use super::table::{Row, Table};
use crate::node::{self, DataDir, Options};

/// How many small files there are. Few of everything, since a guest that asks its host a thousand times
/// rarely gets through on this clock (see `Clock` of `cargo xtask bench`), which counts each of them
/// exactly.
pub const FILES: u32 = 40;

/// Bytes in each.
pub const FILE_BYTES: usize = 1024;

/// How often they are listed.
pub const LISTS: u32 = 10;

/// Bytes of the large file.
pub const LARGE_BYTES: u64 = 8 << 20;

/// Bytes of one read or write of it: what `cp` takes at once.
pub const RECORD: usize = 128 << 10;

/// Random reads of a block, and their bytes.
pub const READS: u32 = 64;
const RANDOM_BYTES: u64 = READS as u64 * BLOCK as u64;

/// The host's disk, in MiB.
const DISK_MIB: u32 = 512;

/// Where the program finds the folder that is shared.
const VOLUME: &str = "/mnt";

/// What the program measures: as it says it, the names of rows, what it is, and how much of it.
struct Measured {
    said: &'static str,
    ours: &'static str,
    peers: &'static str,
    what: &'static str,
    amount: Amount,
}

#[derive(Clone, Copy)]
enum Amount {
    Times(u32),
    Bytes(u64),
}

impl Amount {
    fn number(self) -> u64 {
        match self {
            Self::Times(times) => times.into(),
            Self::Bytes(bytes) => bytes,
        }
    }

    fn row(self, name: &'static str, what: &'static str, times: Vec<Duration>) -> Row {
        match self {
            Self::Times(count) => Row::frequencies(name, what, count, times),
            Self::Bytes(bytes) => Row::rates(name, what, bytes, times),
        }
    }
}

macro_rules! measured {
    ($($said:literal $amount:expr, $what:literal;)*) => {
        [$(Measured {
            said: $said,
            ours: concat!("fs.", $said),
            peers: concat!("fs.virtiofsd_", $said),
            what: $what,
            amount: $amount,
        }),*]
    };
}

/// In the program's order.
const MEASURED: [Measured; 11] = measured! {
    "create" Amount::Times(FILES), "files of 1 KiB made and written";
    "stat_cold" Amount::Times(FILES), "files looked at that the guest does not know";
    "stat_warm" Amount::Times(FILES), "the same once more";
    "list" Amount::Times(FILES * LISTS), "names read from their folder";
    "open" Amount::Times(FILES), "files opened and read";
    "unlink" Amount::Times(FILES), "files removed";
    "write" Amount::Bytes(LARGE_BYTES), "8 MiB written, 128 KiB at once";
    "read_cold" Amount::Bytes(LARGE_BYTES), "the same file read, which the guest does not know";
    "read_warm" Amount::Bytes(LARGE_BYTES), "the same once more";
    "random_cold" Amount::Bytes(RANDOM_BYTES), "random reads of 4 KiB, from a file the guest does not know";
    "random_warm" Amount::Bytes(RANDOM_BYTES), "the same once more";
};

/// Measures everything about volumes, `repetitions` times.
///
/// # Errors
/// A guest did not answer, or the daemon failed.
pub fn files(repetitions: u32) -> Result<Table> {
    let expected: Vec<Expected> = MEASURED
        .iter()
        .map(|one| (one.said, one.amount.number()))
        .collect();
    let (mut all_ours, mut all_peers) = (Vec::new(), Vec::new());
    let options = Options::kvm()
        .data(DataDir::Disk { mib: DISK_MIB })
        .vm("max_vcpus", PROCESSORS);
    node::run(options, |node| {
        let folder = node.root_dir().join("shared");
        let mount = Mount {
            host_path: folder.display().to_string(),
            container_path: VOLUME.to_owned(),
            ..Mount::default()
        };
        let program = Program {
            image: image::NAME,
            command: &[image::PROGRAM, VOLUME],
            mounts: &[mount],
            expected: &expected,
        };
        empty(&folder)?;
        let pods = Pods::new(node, program)?;
        let peer = peer::Peer::new()?;
        // The first of each does not count, and they alternate, as everywhere here.
        for repetition in 0..=repetitions {
            let ours = patiently("vmm", || pods.measure(|| empty(&folder)))?;
            eprintln!("vmm {ours:?}");
            let theirs = patiently("qemu", || {
                empty(&folder)?;
                peer.measure(&folder, &expected)
            })?;
            eprintln!("virtiofsd {theirs:?}");
            if repetition > 0 {
                all_ours.push(ours);
                all_peers.push(theirs);
            }
        }
        Ok(fs::remove_dir_all(&folder)?)
    })?;
    let mut table = Table {
        rows: Vec::new(),
        ratios: Vec::new(),
    };
    for (index, one) in MEASURED.into_iter().enumerate() {
        let times = |all: &[Vec<Duration>]| all.iter().map(|figures| figures[index]).collect();
        let rows = [
            one.amount.row(one.ours, one.what, times(&all_ours)),
            one.amount
                .row(one.peers, "with QEMU's virtiofsd", times(&all_peers)),
        ];
        table.rows.extend(rows);
        table.ratios.push((one.ours, "qemu-virtiofsd", one.peers));
    }
    Ok(table)
}

/// An empty folder, the same one for the VMM that has it open.
fn empty(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

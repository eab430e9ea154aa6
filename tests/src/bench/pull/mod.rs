//! What a pull costs, against containerd with overlayfs, from one registry in one run.
//!
//! - [`images`]: what is pulled.
//! - [`puller`]: the two that pull, each a fresh daemon with an empty store.
//! - [`cost`]: time, processor time, bytes written and memory of one pull.
//!
//! Runs natively: what is compared are a registry's bytes on their way to a disk, no guest.

mod cost;
mod images;
mod puller;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use self::cost::Cost;
use self::images::Case;
use self::puller::Puller;
use super::table::{Row, Table};
use crate::registry::{Access, Registry};

/// The names of one case's rows and what they mean.
struct Names {
    case: Case,
    /// Ours and containerd's.
    time: [&'static str; 2],
    cpu: [&'static str; 2],
    written: [&'static str; 2],
    memory: [&'static str; 2],
    what: &'static str,
}

macro_rules! names {
    ($case:ident, $name:literal, $what:literal) => {
        Names {
            case: Case::$case,
            time: [concat!("pull.", $name), concat!("containerd.", $name)],
            cpu: [
                concat!("pull.", $name, ".cpu"),
                concat!("containerd.", $name, ".cpu"),
            ],
            written: [
                concat!("pull.", $name, ".written"),
                concat!("containerd.", $name, ".written"),
            ],
            memory: [
                concat!("pull.", $name, ".memory"),
                concat!("containerd.", $name, ".memory"),
            ],
            what: $what,
        }
    };
}

const ALL: [Names; 3] = [
    names!(SmallFiles, "small_files", "5 layers, 200 MB of small files"),
    names!(LargeFiles, "large_files", "1 GB of large files"),
    names!(Shared, "shared", "20 images that share layers"),
];

/// Measures every case, `repetitions` times. The images are made once and kept in `cache`.
///
/// # Errors
/// containerd or docker-registry is not installed, or a pull fails.
pub fn pull(repetitions: u32, cache: &Path) -> Result<Table> {
    let storage = images::build(cache)?;
    let registry = Registry::start(&storage, Access::ReadOnly)?;
    let mut table = Table {
        rows: Vec::new(),
        ratios: Vec::new(),
    };
    for names in &ALL {
        let images = names.case.images(&registry.host());
        let mut costs: [Vec<Cost>; 2] = Default::default();
        // The first of each fills the page cache and does not count. They alternate, so that whatever
        // drifts does so for both.
        for repetition in 0..=repetitions {
            for (puller, costs) in [Puller::Isopod, Puller::Containerd].iter().zip(&mut costs) {
                let cost = puller.pull(&registry.host(), &images)?;
                eprintln!("{} {puller:?}: {cost:?}", names.time[0]);
                if repetition > 0 {
                    costs.push(cost);
                }
            }
        }
        add(&mut table, names, &costs);
    }
    Ok(table)
}

fn add(table: &mut Table, names: &Names, costs: &[Vec<Cost>; 2]) {
    let what = names.what;
    let times = |pick: fn(&Cost) -> Duration, index: usize| -> Vec<Duration> {
        costs[index].iter().map(pick).collect()
    };
    let sizes = |pick: fn(&Cost) -> u64, index: usize| -> Vec<u64> {
        costs[index].iter().map(pick).collect()
    };
    for index in 0..2 {
        table.rows.extend([
            Row::times(names.time[index], what, times(|cost| cost.time, index)),
            Row::times(
                names.cpu[index],
                "processor time",
                times(|cost| cost.cpu, index),
            ),
            Row::sizes(
                names.written[index],
                "written",
                sizes(|cost| cost.written, index),
            ),
            Row::sizes(
                names.memory[index],
                "the daemon's peak memory",
                sizes(|cost| cost.memory, index),
            ),
        ]);
    }
    for [ours, theirs] in [names.time, names.cpu, names.written, names.memory] {
        table.ratios.push((ours, "containerd", theirs));
    }
}

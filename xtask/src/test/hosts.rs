//! Where KVM is: this machine, or as many emulated hosts at once as it has processors and memory for.
//! Each of them has one processor, and takes shares of the tests.

use std::collections::VecDeque;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::guest_image::{self, GuestImage};
use crate::lab::{self, Job};
use crate::progress::say;
use crate::{build, kvm};

/// A share of the tests.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Emulated hosts that may freeze before a share is given up.
pub(super) const PER_SHARE: usize = 3;

/// Memory of an emulated host, MiB: several guests, images and a file system in memory.
const MEMORY_MIB: u32 = 6144;

/// Where the lab shows the folder that outlives it.
const EXCHANGE: &str = "/run/lab/exchange";

/// What the tests are told where to find.
#[derive(Debug)]
pub(super) struct Parts {
    binaries: PathBuf,
    image: GuestImage,
    tools: PathBuf,
    images: PathBuf,
}

impl Parts {
    /// Builds a node, and the images for its registry.
    pub(super) fn build(tools: PathBuf, images: impl FnOnce() -> Result<PathBuf>) -> Result<Self> {
        Ok(Self {
            binaries: build::node()?,
            image: guest_image::all()?,
            tools,
            images: images()?,
        })
    }

    /// The variables that tell.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        [
            ("ISOPOD_TEST_BIN_DIR", &self.binaries),
            ("ISOPOD_TEST_KERNEL", &self.image.kernel),
            ("ISOPOD_TEST_AGENT_IMAGE", &self.image.agent_image),
            ("ISOPOD_TEST_INITRAMFS", &self.image.initramfs),
            ("ISOPOD_TEST_TOOLS", &self.tools),
            ("ISOPOD_TEST_IMAGES", &self.images),
        ]
        .map(|(name, path)| (name.to_owned(), path.display().to_string()))
        .into()
    }
}

/// How many containers the test of many containers makes; passed on.
const CYCLES: &str = "ISOPOD_TEST_CYCLES";

/// Deals tests out in shares, `per_host` for each of as many hosts as there can be. Each host takes
/// the next share when it has ended one, so that all end at about the same time, whatever a share
/// takes. After an error no share is begun.
pub(super) fn deal<T: Clone + Send, R: Send>(
    tests: &[T],
    per_host: usize,
    run: impl Fn(Vec<T>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let hosts = hosts()?;
    let mut shares = VecDeque::from(vec![Vec::new(); (hosts * per_host).min(tests.len())]);
    let count = shares.len();
    for (index, test) in tests.iter().enumerate() {
        shares[index % count].push(test.clone());
    }
    let shares = Mutex::new(shares);
    let shares = || shares.lock().unwrap_or_else(PoisonError::into_inner);
    let on_a_host = || -> Result<Vec<R>> {
        let mut results = Vec::new();
        loop {
            let Some(share) = shares().pop_front() else {
                return Ok(results);
            };
            results.push(run(share).inspect_err(|_| shares().clear())?);
        }
    };
    thread::scope(|scope| {
        let runs: Vec<_> = (0..hosts).map(|_| scope.spawn(on_a_host)).collect();
        let mut results = Vec::with_capacity(count);
        for run in runs {
            match run.join() {
                Ok(of_one_host) => results.extend(of_one_host?),
                Err(panic) => resume_unwind(panic),
            }
        }
        Ok(results)
    })
}

/// As many as there can be.
fn hosts() -> Result<usize> {
    let Some(why) = kvm::unusable() else {
        return Ok(1);
    };
    say(&format!(
        "In an emulated host, some ten times slower: {why}"
    ));
    let processors = thread::available_parallelism()?.get();
    Ok(processors
        .min(available_mib()? / MEMORY_MIB as usize)
        .max(1))
}

/// Where the command of [`run`] sees the folder.
pub(super) fn seen(folder: &Path) -> &Path {
    match kvm::unusable() {
        Some(_) => Path::new(EXCHANGE),
        None => folder,
    }
}

/// Runs a command on a host, with a folder that it can write to; its exit status.
pub(super) fn run(command: Vec<String>, parts: &Parts, folder: &Path) -> Result<u8> {
    let mut job = Job::new(command)?;
    job.env = parts.environment();
    job.env.push(("ISOPOD_REQUIRE_KVM".into(), "1".into()));
    if let Ok(cycles) = std::env::var(CYCLES) {
        job.env.push((CYCLES.into(), cycles));
    }
    job.env
        .push(("ISOPOD_TEST_DATA".into(), "/var/lib/isopod".into()));
    job.memory_mib = MEMORY_MIB;
    job.timeout = Some(TIMEOUT);
    job.exchange = Some(folder.to_owned());
    lab::where_kvm_is(&job)
}

/// Memory that can be had without swapping, MiB (proc(5), `MemAvailable`).
fn available_mib() -> Result<usize> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok())
        .map(|kib| kib >> 10)
        .context("/proc/meminfo has no MemAvailable")
}

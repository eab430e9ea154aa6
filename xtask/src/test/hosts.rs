//! Where KVM is: this machine, or as many emulated hosts at once as it has processors and memory for.
//! Each of them has one processor, and takes a share of the tests.

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::guest_image::{self, GuestImage};
use crate::lab::{self, Job};
use crate::progress::say;
use crate::{build, kvm};

/// A host's share of the tests. Of two shares, one was seen to take 19 minutes and the other more than 30.
const TIMEOUT: Duration = Duration::from_secs(45 * 60);

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

/// Deals tests out to as many hosts as there can be, and runs each host's share on a thread.
pub(super) fn deal<T: Clone + Send, R: Send>(
    tests: &[T],
    run: impl Fn(Vec<T>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let hosts = match kvm::unusable() {
        Some(why) => {
            say(&format!(
                "In an emulated host, some ten times slower: {why}"
            ));
            let processors = thread::available_parallelism()?.get();
            processors
                .min(available_mib()? / MEMORY_MIB as usize)
                .max(1)
        }
        None => 1,
    };
    let mut shares = vec![Vec::new(); hosts.min(tests.len())];
    for (index, test) in tests.iter().enumerate() {
        shares[index % hosts].push(test.clone());
    }
    thread::scope(|scope| {
        let run = &run;
        let runs: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || run(share)))
            .collect();
        let ended = runs.into_iter().map(|run| match run.join() {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        });
        ended.collect()
    })
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

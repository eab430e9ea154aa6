//! `isopod-bench` in the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::lab::{self, Job};
use crate::progress::step;
use crate::{build, guest_image, project, setup, test_images};

/// How long a run may take by the wall clock.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Memory of the emulated host, MiB: QEMU and a guest, or a daemon, its images and a guest.
const MEMORY_MIB: u32 = 4096;

/// Where the lab shows the folder that outlives it.
const RESULTS: &str = "/run/lab/exchange/results.json";

/// What time is in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// The number of instructions executed, so that it does not matter what else the machine does.
    ///
    /// QEMU (7.2 was seen to) ends a turn of its vCPU where a timer is due, and when that
    /// is inside a guest that has just been given an interrupt, it delivers the interrupt once more,
    /// whether the guest takes interrupts or not (`helper_vmrun` leaves it in `exception_index`). A
    /// guest that lives long enough is stopped by a lock that its interrupt handler wants.
    Instructions,
    /// The machine's own, for guests that live long.
    Machine,
}

/// Builds what is measured, measures `what`, prints the table, and keeps every value.
pub(super) fn run(what: &str, repetitions: u32, clock: Clock) -> Result<ExitCode> {
    setup::packages(setup::Need::ALL)?;
    run_with(what, repetitions, clock, test_images::build()?)
}

/// Builds the image with a program that measures inside guests, and measures `what`: `making` is what
/// makes the image of it.
pub(super) fn run_program(
    what: &str,
    repetitions: u32,
    making: &str,
    program: &Path,
) -> Result<ExitCode> {
    let bench = build::bench()?;
    let images = step("Building the image of what measures", || {
        let output = Command::new(bench)
            .arg(making)
            .arg(project::cache().root())
            .arg(program)
            .stderr(Stdio::inherit())
            .output()
            .context("starting the benchmark")?;
        ensure!(
            output.status.success(),
            "the benchmark ended with {}",
            output.status
        );
        let path = String::from_utf8(output.stdout).context("a path")?;
        Ok(PathBuf::from(path.trim()))
    })?;
    run_with(what, repetitions, Clock::Instructions, images)
}

/// [`run`] with a registry's storage of its own.
fn run_with(what: &str, repetitions: u32, clock: Clock, images: PathBuf) -> Result<ExitCode> {
    setup::packages(setup::Need::ALL)?;
    let image = guest_image::all()?;
    let parts: [(&str, PathBuf); 6] = [
        ("ISOPOD_TEST_BIN_DIR", build::node()?),
        ("ISOPOD_TEST_KERNEL", image.kernel),
        ("ISOPOD_TEST_AGENT_IMAGE", image.agent_image),
        ("ISOPOD_TEST_INITRAMFS", image.initramfs),
        ("ISOPOD_TEST_TOOLS", setup::crictl()?),
        ("ISOPOD_TEST_IMAGES", images),
    ];
    let folder = project::target().join("bench").join(what);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let command = [
        build::bench()?.display().to_string(),
        what.to_owned(),
        repetitions.to_string(),
    ];
    let mut job = Job::new(command.into())?;
    job.icount = clock == Clock::Instructions;
    job.memory_mib = MEMORY_MIB;
    job.timeout = Some(TIMEOUT);
    job.exchange = Some(folder);
    for (name, path) in parts {
        job.env.push((name.to_owned(), path.display().to_string()));
    }
    for (name, value) in [
        ("ISOPOD_REQUIRE_KVM", "1"),
        ("ISOPOD_TEST_DATA", "/var/lib/isopod"),
        ("ISOPOD_BENCH_RESULTS", RESULTS),
    ] {
        job.env.push((name.to_owned(), value.to_owned()));
    }
    Ok(ExitCode::from(lab::where_kvm_is(&job)?))
}

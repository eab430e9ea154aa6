//! `isopod-bench` in the lab, on its instruction clock: one vCPU, and time is the number of
//! instructions executed, so it does not matter what else the machine does.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::lab::{self, Job};
use crate::{build, guest_image, project, setup, test_images};

/// How long a run may take by the wall clock.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Memory of the emulated host, MiB: QEMU and a guest, or a daemon, its images and a guest.
const MEMORY_MIB: u32 = 4096;

/// Where the lab shows the folder that outlives it.
const RESULTS: &str = "/run/lab/exchange/results.json";

/// Builds what is measured, measures `what`, prints the table, and keeps every value.
pub(super) fn run(what: &str, repetitions: u32) -> Result<ExitCode> {
    setup::packages(setup::Need::ALL)?;
    let image = guest_image::both()?;
    let parts: [(&str, PathBuf); 4] = [
        ("ISOPOD_TEST_BIN_DIR", build::node()?),
        ("ISOPOD_TEST_KERNEL", image.kernel),
        ("ISOPOD_TEST_INITRAMFS", image.initramfs),
        ("ISOPOD_TEST_IMAGES", test_images::build()?),
    ];
    let folder = project::target().join("bench").join(what);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let command = [
        build::bench()?.display().to_string(),
        what.to_owned(),
        repetitions.to_string(),
    ];
    let mut job = Job::new(command.into())?;
    job.icount = true;
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

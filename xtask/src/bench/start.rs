//! `cargo xtask bench start`: from a process's start to an agent's answer, and what a pod takes.
//!
//! Runs in the lab on its instruction clock: one vCPU, and time is the number of instructions
//! executed, so it does not matter what else the machine does.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::lab::{self, Job};
use crate::{build, guest_image, setup, test_images};

/// How long a run may take by the wall clock.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Memory of the emulated host, MiB: QEMU and a guest, or a daemon, its images and a guest.
const MEMORY_MIB: u32 = 4096;

/// Options of `cargo xtask bench start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
}

/// Builds what is measured, and measures.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::packages(setup::Need::ALL)?;
    let image = guest_image::both()?;
    let parts: [(&str, PathBuf); 4] = [
        ("ISOPOD_TEST_BIN_DIR", build::node()?),
        ("ISOPOD_TEST_KERNEL", image.kernel),
        ("ISOPOD_TEST_INITRAMFS", image.initramfs),
        ("ISOPOD_TEST_IMAGES", test_images::build()?),
    ];
    let command = [
        build::bench()?.display().to_string(),
        "start".to_owned(),
        arguments.repetitions.to_string(),
    ];
    let mut job = Job::new(command.into())?;
    job.icount = true;
    job.memory_mib = MEMORY_MIB;
    job.timeout = Some(TIMEOUT);
    for (name, path) in parts {
        job.env.push((name.to_owned(), path.display().to_string()));
    }
    job.env.push(("ISOPOD_REQUIRE_KVM".into(), "1".into()));
    job.env
        .push(("ISOPOD_TEST_DATA".into(), "/var/lib/isopod".into()));
    Ok(ExitCode::from(lab::where_kvm_is(&job)?))
}

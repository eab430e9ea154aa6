//! `cargo xtask bench pull`: what pulls cost, against Debian's containerd, and what reading costs a guest.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use super::read;
use crate::{build, project, setup};

/// Options of `cargo xtask bench pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
}

/// Builds what is measured, and measures: pulls here, since no guest is involved, then the guest's half.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::packages(setup::Need::ALL)?;
    setup::packages(&[setup::Need::Bench])?;
    let daemon = build::daemon()?;
    let binaries = daemon.parent().context("a binary is in a folder")?;
    let status = Command::new(build::bench()?)
        .arg("pull")
        .arg(arguments.repetitions.to_string())
        .arg(project::cache().root())
        .env("ISOPOD_TEST_BIN_DIR", binaries)
        .status()
        .context("starting the benchmark")?;
    ensure!(status.success(), "the benchmark ended with {status}");
    read::measure(arguments.repetitions)
}

//! `cargo xtask bench read`: what reading an image costs a guest, against ext4 on QEMU's virtio-blk.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::harness::{self, Clock};
use crate::progress::step;
use crate::{build, project, setup};

/// Options of `cargo xtask bench read`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
}

/// Builds what is measured, and measures.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    measure(arguments.repetitions)
}

/// As `cargo xtask bench read` does.
pub(super) fn measure(repetitions: u32) -> Result<ExitCode> {
    setup::packages(setup::Need::ALL)?;
    let reader = build::bench_reader()?;
    let bench = build::bench()?;
    let images = step("Building the image that is read", || {
        let mut command = Command::new(bench);
        command.arg("read-images").arg(project::cache().root());
        folder(command.arg(reader))
    })?;
    harness::run_with("read", repetitions, Clock::Instructions, images)
}

/// The folder that it prints.
fn folder(command: &mut Command) -> Result<PathBuf> {
    let output = command
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
}

//! `cargo xtask bench fs`: a pod's volumes over virtio-fs, against QEMU's with virtiofsd.

use std::process::ExitCode;

use anyhow::Result;

use super::harness;
use crate::{build, setup};

/// Options of `cargo xtask bench fs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
}

/// Builds what is measured, and measures.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::packages(setup::Need::ALL)?;
    let program = build::bench_program("isopod-bench-files")?;
    harness::run_program("fs", arguments.repetitions, "fs-images", &program)
}

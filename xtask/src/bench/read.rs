//! `cargo xtask bench read`: what reading an image costs a guest, against ext4 on QEMU's virtio-blk.

use std::process::ExitCode;

use anyhow::Result;

use super::harness;
use crate::{build, setup};

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
    let reader = build::bench_program("isopod-bench-reader")?;
    harness::run_program("read", repetitions, "read-images", &reader)
}

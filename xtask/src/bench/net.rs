//! `cargo xtask bench net`: TCP between a guest and the host, against QEMU's microvm.

use std::process::ExitCode;

use anyhow::Result;

use super::harness;

/// Options of `cargo xtask bench net`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
}

/// Builds what is measured, and measures.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    harness::run("net", arguments.repetitions)
}

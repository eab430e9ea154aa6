//! `cargo xtask bench net`: TCP between a guest and the host, against QEMU's microvm, and what exec and
//! attach take.

use std::process::ExitCode;

use anyhow::Result;

use super::harness::{self, Clock};

/// Options of `cargo xtask bench net`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
}

/// Builds what is measured, and measures.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    // Each on a host of its own.
    let interface = harness::run("net", arguments.repetitions, Clock::Instructions)?;
    if interface != ExitCode::SUCCESS {
        return Ok(interface);
    }
    harness::run("streams", arguments.repetitions, Clock::Machine)
}

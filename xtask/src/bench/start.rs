//! `cargo xtask bench start`: from a process's start to an agent's answer, and what a pod takes.

use std::process::ExitCode;

use anyhow::Result;

use super::harness::{self, Clock};

/// Options of `cargo xtask bench start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,
}

/// Builds what is measured, and measures.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    harness::run("start", arguments.repetitions, Clock::Instructions)
}

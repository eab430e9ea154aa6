//! `cargo xtask bench WHAT`: measures against peers, both in one run.
//!
//! - [`pull`]: what pulls cost, here.
//! - [`start`]: how fast a guest and a pod start, in the lab on the instruction clock.
//!
//! Absolute times are those of the machine that measured; the ratios are what carries over.

mod pull;
mod start;

use std::process::ExitCode;

use anyhow::Result;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Pulls: time, processor time, bytes written and memory, against containerd
    Pull(pull::Arguments),
    /// Start times and the VMM's memory, against QEMU's microvm
    Start(start::Arguments),
}

/// Measures and prints a table and the ratios.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        What::Pull(arguments) => pull::run(arguments),
        What::Start(arguments) => start::run(arguments),
    }
}

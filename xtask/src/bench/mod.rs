//! `cargo xtask bench WHAT`: measures against peers, both in one run.
//!
//! - [`critest`]: what critest measures, in the lab.
//! - [`fs`]: what volumes are capable of, in the lab on the instruction clock.
//! - [`net`]: how fast a guest's network is, in the lab on the instruction clock, and people's streams, there on
//!   the ordinary one.
//! - [`pull`]: what pulls cost, here, and then what [`read`] measures.
//! - [`read`]: what reading an image costs a guest, in the lab on the instruction clock.
//! - [`start`]: how fast a guest and a pod start, in the lab on the instruction clock.
//! - [`harness`]: what runs there.
//!
//! Absolute times are those of the machine that measured; the ratios are what carries over.

mod critest;
mod fs;
mod harness;
mod net;
mod pull;
mod read;
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
    /// critest's benchmarks of pods, containers and images; the results are kept as JSON
    Critest(critest::Arguments),
    /// Volumes of a guest, against QEMU's virtiofsd; the results are kept as JSON
    Fs(fs::Arguments),
    /// TCP of a guest, against QEMU's microvm, and streams; the results are kept as JSON
    Net(net::Arguments),
    /// Pulls: time, processor time, bytes written and memory, against containerd; then `read`
    Pull(pull::Arguments),
    /// Reading an image in a guest, against ext4 under QEMU's microvm; the results are kept as JSON
    Read(read::Arguments),
    /// Start times and the VMM's memory, against QEMU's microvm; the results are kept as JSON
    Start(start::Arguments),
}

/// Measures and prints a table and the ratios.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.what {
        What::Critest(arguments) => critest::run(arguments),
        What::Fs(arguments) => fs::run(arguments),
        What::Net(arguments) => net::run(arguments),
        What::Pull(arguments) => pull::run(arguments),
        What::Read(arguments) => read::run(arguments),
        What::Start(arguments) => start::run(arguments),
    }
}

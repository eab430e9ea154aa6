//! `cargo xtask test [unit|e2e|critest|kubelet]`: sets up what the tests need, and runs them.
//!
//! - [`unit`]: formatting, clippy, unit tests. Needs no KVM.
//! - [`e2e`]: the daemon with real images and crictl; containers in microVMs, where KVM is.
//! - [`critest`]: Kubernetes' conformance tests for CRI servers; not run by default.
//! - [`kubelet`]: a real kubelet on Isopod; not run by default.
//! - [`hosts`]: where KVM is, and how tests are dealt out there.
//! - [`count`]: what the test binaries print, summed up in the last line.

mod count;
mod critest;
mod e2e;
mod hosts;
mod kubelet;
mod unit;

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use count::Count;

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which tests; unit and end-to-end tests by default
    #[arg(value_enum)]
    suite: Option<Suite>,
    /// Passed on to the end-to-end test binaries, such as a part of a test's name; for critest,
    /// regular expressions that a spec's name matches
    #[arg(last = true)]
    filter: Vec<String>,
}

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Formatting, clippy, unit tests
    Unit,
    /// End-to-end tests
    E2e,
    /// critest
    Critest,
    /// A real kubelet
    Kubelet,
}

/// Runs the tests; the last line counts them.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut count = Count::default();
    if matches!(arguments.suite, None | Some(Suite::Unit)) {
        count += unit::run()?;
    }
    if matches!(arguments.suite, None | Some(Suite::E2e)) {
        count += e2e::run(&arguments.filter)?;
    }
    if arguments.suite == Some(Suite::Critest) {
        count += critest::run(&arguments.filter)?;
    }
    if arguments.suite == Some(Suite::Kubelet) {
        count += kubelet::run(&arguments.filter)?;
    }
    println!("{count}");
    Ok(if count.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

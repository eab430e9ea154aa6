//! `cargo xtask test critest [-- FOCUS]`: Kubernetes' conformance tests for CRI servers.
//!
//! ```text
//! critest, dry run -> specs -> dealt out over hosts -> isopod-critest: node, CNI, critest -> reports
//! reports + tests/critest/expected.toml -> verdicts -> table, count
//! ```
//!
//! - [`spec`]: which specs there are.
//! - [`report`]: what ginkgo says of them.
//! - [`expected`]: which ones cannot pass, and why.
//! - [`verdict`]: both together, and the table.

mod expected;
mod report;
mod spec;
mod verdict;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::Count;
use super::hosts::{self, Parts};
use crate::progress::{say, step};
use crate::{build, lab, setup, test_images};

use expected::Expected;
use report::Outcome;
use spec::{Spec, Transport};
use verdict::Verdict;

/// Builds everything, and runs the specs that match ginkgo's focus, all of them by default.
pub(super) fn run(focus: &[String]) -> Result<Count> {
    setup::packages(setup::Need::ALL)?;
    let tools = setup::critest()?;
    let specs = spec::all(&tools, focus)?;
    let expected = Expected::read(&specs.names)?;
    let parts = Parts::build(tools, test_images::critest)?;
    let runner = build::test_program("isopod-critest")?;
    let title = format!("Running {} specs of critest", specs.selected.len());
    let shares = step(&title, || {
        hosts::deal(&specs.selected, SHARES_PER_HOST, |share| {
            share_on_host(&runner, &parts, &share, &expected)
        })
    })?;
    let mut count = Count::default();
    let mut verdicts = Vec::new();
    for share in shares {
        // What it left behind is no spec's failure, and none of the less one.
        count.failed += u64::from(share.status != 0);
        for (spec, outcome) in share.outcomes {
            verdicts.push(Verdict::new(spec, outcome, &expected));
        }
    }
    print!("{}", verdict::Table(&verdicts));
    for verdict in &verdicts {
        count += verdict.count();
    }
    Ok(count)
}

/// Each share sets up a node with its registry.
const SHARES_PER_HOST: usize = 1;

/// What came of a host's share.
#[derive(Debug)]
struct Share {
    outcomes: Vec<(Spec, Outcome)>,
    /// Of the node with its clean-up and leak check, not of the specs.
    status: u8,
}

/// Runs a share of the specs on one host; all of it once more when the emulated host freezes, because
/// ginkgo reports at the end.
fn share_on_host(
    runner: &Path,
    parts: &Parts,
    share: &[Spec],
    expected: &Expected,
) -> Result<Share> {
    for _ in 0..hosts::PER_SHARE {
        let folder = tempfile::tempdir().context("making a folder for critest's reports")?;
        match run_share(runner, parts, share, folder.path()) {
            Ok(share) => {
                let unexpected = |(spec, outcome): &(Spec, Outcome)| {
                    outcome.is_failure() && expected.reason(&spec.name).is_none()
                };
                if share.status != 0 || share.outcomes.iter().any(unexpected) {
                    let log = folder.keep().join("daemon.log");
                    say(&format!("The daemon's log: {}", log.display()));
                }
                return Ok(share);
            }
            Err(error) if error.is::<lab::Frozen>() => {
                say("The emulated host froze; its specs start anew in another one");
            }
            Err(error) => return Err(error),
        }
    }
    bail!(
        "{} emulated hosts froze, one after the other",
        hosts::PER_SHARE
    )
}

fn run_share(runner: &Path, parts: &Parts, share: &[Spec], folder: &Path) -> Result<Share> {
    for transport in Transport::ALL {
        let mut names = String::new();
        for spec in share.iter().filter(|spec| spec.transport == transport) {
            names.push_str(&spec.name);
            names.push('\n');
        }
        if !names.is_empty() {
            fs::write(folder.join(format!("{transport}.specs")), names)?;
        }
    }
    let mut command: Vec<String> = ["unshare", "--net", "--mount", "--propagation", "private"]
        .map(str::to_owned)
        .into();
    command.push(runner.display().to_string());
    command.push(hosts::seen(folder).display().to_string());
    let status = hosts::run(command, parts, folder)?;
    if status != 0 {
        say(&format!("The node ended with status {status}"));
    }
    let mut outcomes = Vec::new();
    for spec in share {
        let path = folder.join(format!("{}.json", spec.transport));
        outcomes.push((spec.clone(), Outcome::of(&spec.name, &path)?));
    }
    Ok(Share { outcomes, status })
}

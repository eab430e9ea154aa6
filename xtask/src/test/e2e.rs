//! End-to-end tests: the daemon with real images and crictl, containers in microVMs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::Count;
use super::hosts::{self, Parts};
use crate::progress::{say, step};
use crate::{build, lab, setup, test_images};

/// The tests' output, in the folder that outlives an emulated host.
const LOG: &str = "tests.log";

/// So many that hosts end at about the same time, and no more: each share boots a host.
const SHARES_PER_HOST: usize = 5;

/// Builds everything once, then runs `host` here and `e2e` where KVM is.
pub(super) fn run(filter: &[String]) -> Result<Count> {
    setup::packages(setup::Need::ALL)?;
    let tools = setup::crictl()?;
    let parts = Parts::build(tools, test_images::build)?;
    let host = test_binary("host")?;
    let e2e = test_binary("e2e")?;
    let mut count = step("Running tests that need no KVM", || {
        natively(&host, &parts, filter)
    })?;
    count += step("Running containers in microVMs", || {
        in_microvms(&e2e, &parts, filter)
    })?;
    Ok(count)
}

fn natively(binary: &Path, parts: &Parts, filter: &[String]) -> Result<Count> {
    let mut child = Command::new(binary)
        .args(filter)
        .arg("--test-threads=2")
        .envs(parts.environment())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", binary.display()))?;
    let count = Count::read(child.stdout.take().context("the tests' output is a pipe")?);
    let status = child.wait().context("waiting for the tests")?;
    ensure!(
        status.success() || count.failed > 0,
        "the tests ended with {status}"
    );
    Ok(count)
}

/// Runs the tests of a binary that match the filter, where KVM is.
pub(super) fn in_microvms(binary: &Path, parts: &Parts, filter: &[String]) -> Result<Count> {
    let names = names(binary, filter)?;
    let counts = hosts::deal(&names, SHARES_PER_HOST, |share| {
        share_to_its_end(binary, parts, share)
    })?;
    let mut sum = Count::default();
    for count in counts {
        sum += count;
    }
    Ok(sum)
}

/// The names of the tests that match the filter.
fn names(binary: &Path, filter: &[String]) -> Result<Vec<String>> {
    let output = Command::new(binary)
        .args(filter)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| format!("starting {}", binary.display()))?;
    ensure!(output.status.success(), "listing the tests failed");
    let list = String::from_utf8(output.stdout).context("the list of tests")?;
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// Runs a share; what is left of it when the emulated host freezes, in another host.
fn share_to_its_end(binary: &Path, parts: &Parts, mut left: Vec<String>) -> Result<Count> {
    let mut count = Count::default();
    for _ in 0..hosts::PER_SHARE {
        let folder = tempfile::tempdir().context("making a folder for the tests' output")?;
        let result = share_in_microvms(binary, parts, &left, folder.path());
        let log =
            fs::read_to_string(folder.path().join(LOG)).context("reading the tests' output")?;
        count += Count::of(&log);
        match result {
            Ok(0) => return Ok(count),
            Ok(status) => {
                ensure!(count.failed > 0, "the tests ended with status {status}");
                return Ok(count);
            }
            Err(error) if error.is::<lab::Frozen>() => {}
            Err(error) => return Err(error),
        }
        let ended = tests_of(&log).filter_map(|(name, ended)| ended.then_some(name));
        let ended: BTreeSet<&str> = ended.collect();
        left.retain(|name| !ended.contains(name.as_str()));
        let running = tests_of(&log).find_map(|(name, ended)| (!ended).then_some(name));
        say(&format!(
            "The emulated host froze during {}; going on in another one",
            running.unwrap_or("no test")
        ));
    }
    bail!(
        "{} emulated hosts froze, one after the other",
        hosts::PER_SHARE
    )
}

/// The tests that a log names, and whether each one ended.
fn tests_of(log: &str) -> impl Iterator<Item = (&str, bool)> {
    log.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
        // What a failing test prints comes between its name and its result.
        Some((name, !rest.is_empty()))
    })
}

/// The exit status of a share's tests. Output comes as whole lines as the tests run, and once more
/// through [`LOG`] in the folder that outlives an emulated host, to be counted.
fn share_in_microvms(binary: &Path, parts: &Parts, share: &[String], folder: &Path) -> Result<u8> {
    let script = r#"log=$1; shift; set -o pipefail; "$@" 2>&1 | tee "$log" | sed -u ''"#;
    let mut command: Vec<String> = ["bash", "-c", script, "tests"].map(str::to_owned).into();
    command.push(hosts::seen(folder).join(LOG).display().to_string());
    command.push(binary.display().to_string());
    command.push("--exact".to_owned());
    command.extend(share.iter().cloned());
    command.push("--test-threads=1".to_owned());
    hosts::run(command, parts, folder)
}

/// What cargo says of a file that it made.
#[derive(Debug, Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// Builds one of the test binaries, and returns its path.
pub(super) fn test_binary(name: &str) -> Result<PathBuf> {
    step(&format!("Building the tests ({name})"), || {
        let mut cargo = build::cargo();
        cargo.args([
            "test",
            "--quiet",
            "--package",
            "isopod-tests",
            "--test",
            name,
            "--no-run",
        ]);
        let output = cargo
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit())
            .output()
            .context("starting cargo")?;
        ensure!(
            output.status.success(),
            "building the tests failed ({})",
            output.status
        );
        String::from_utf8(output.stdout)
            .context("cargo's messages")?
            .lines()
            .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
            .filter(|artifact| {
                artifact
                    .target
                    .as_ref()
                    .is_some_and(|target| target.name == name)
            })
            .find_map(|artifact| artifact.executable)
            .with_context(|| format!("cargo made no test binary {name}"))
    })
}

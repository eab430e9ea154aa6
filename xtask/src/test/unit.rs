//! Formatting, clippy, unit tests, and the packages' own integration tests.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use super::Count;
use crate::progress::step;
use crate::{build, setup};

/// Runs them; a failed format or lint check ends the run, failed tests are counted.
pub(super) fn run() -> Result<Count> {
    setup::packages(&[
        setup::Need::Build,
        setup::Need::Node,
        setup::Need::Registry,
        setup::Need::TestImages,
    ])?;
    step("Checking the format", || {
        build::run(build::cargo().args(["fmt", "--all", "--check"]))
    })?;
    step("Checking with clippy, warnings as errors", || {
        build::run(build::cargo().args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]))
    })?;
    let tools = setup::crictl()?;
    step("Running unit tests", || tests(&tools))
}

fn tests(tools: &Path) -> Result<Count> {
    let mut cargo = build::cargo();
    cargo.env("ISOPOD_TEST_TOOLS", tools).args([
        "test",
        "--quiet",
        "--workspace",
        "--exclude=isopod-tests",
        "--no-fail-fast",
    ]);
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let stdout = child.stdout.take().context("cargo's output is a pipe")?;
    let mut count = Count::read(stdout);
    let status = child.wait().context("waiting for cargo")?;
    ensure!(
        status.success() || count.failed > 0,
        "cargo test failed ({status}) before it ran tests"
    );
    if !status.success() {
        count.failed = count.failed.max(1);
    }
    Ok(count)
}

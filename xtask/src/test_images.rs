//! The test images: busybox, nginx and a hard one, in a registry's storage.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use crate::progress::step;
use crate::{build, project, setup};

/// The storage of a registry with the test images, from the cache if it is there.
pub(crate) fn build() -> Result<PathBuf> {
    step("Building the test images", || storage(&[]))
}

/// The storage of a registry with the images that critest names.
pub(crate) fn critest() -> Result<PathBuf> {
    let busybox = setup::unpacked("busybox")?.join("bin/busybox");
    let nonewprivs = build::test_program("isopod-test-nonewprivs")?;
    step("Building critest's images", || {
        storage(&[busybox.into(), nonewprivs.into()])
    })
}

fn storage(programs: &[OsString]) -> Result<PathBuf> {
    let mut cargo = build::cargo();
    cargo.args([
        "run",
        "--quiet",
        "--package",
        "isopod-tests",
        "--bin",
        "isopod-test-images",
        "--",
    ]);
    let output = cargo
        .arg(project::cache().root())
        .args(programs)
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(
        output.status.success(),
        "building the test images failed ({})",
        output.status
    );
    let path = String::from_utf8(output.stdout).context("the path of the test images")?;
    Ok(PathBuf::from(path.trim()))
}

//! Go programs for the tests, built from the Go module proxy.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use isopod_guest_image::cache::Key;
use serde::Deserialize;

use crate::progress::step;
use crate::project;

/// The module with crictl and critest.
const CRI_TOOLS: &str = "sigs.k8s.io/cri-tools";

/// Its version.
const CRI_TOOLS_VERSION: &str = "v1.36.0";

/// The digest of its files, as `go.sum` would have it. Everything that it depends on is verified by the
/// module's own `go.sum`.
const CRI_TOOLS_SUM: &str = "h1:Xt+LLvBVH1Fnp/AR2EyHApyWS/88y2KlWjlDc2HR+aw=";

/// The oldest Go that fetches the toolchain that a module asks for (`GOTOOLCHAIN`).
const GO_MINOR_MIN: u32 = 21;

/// What `go mod download -json` says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Download {
    dir: PathBuf,
    sum: String,
}

/// The folder of `crictl`, built into the cache if it is not there.
pub(crate) fn crictl() -> Result<PathBuf> {
    cri_tool("crictl", "the client that the tests drive the daemon with")
}

/// The folder of `critest`, built into the cache if it is not there.
pub(crate) fn critest() -> Result<PathBuf> {
    cri_tool("critest", "Kubernetes' conformance tests for CRI servers")
}

fn cri_tool(name: &str, what: &str) -> Result<PathBuf> {
    let key = Key::default()
        .input("module", CRI_TOOLS)
        .input("version", CRI_TOOLS_VERSION)
        .name();
    project::cache().get_or_make(name, &key, |draft| {
        check()?;
        step(&format!("Building {name}, once ({what})"), || {
            build(name, draft)
        })
    })
}

fn build(name: &str, folder: &Path) -> Result<()> {
    let module = format!("{CRI_TOOLS}@{CRI_TOOLS_VERSION}");
    // The sum is compared below: a machine that reaches only a module proxy has no checksum database.
    let mut download = Command::new("go");
    download
        .args(["mod", "download", "-json", &module])
        .env("GOSUMDB", "off")
        .current_dir("/");
    let json = stdout(&mut download)?;
    let download: Download =
        serde_json::from_str(&json).with_context(|| format!("go mod download {module}"))?;
    ensure!(
        download.sum == CRI_TOOLS_SUM,
        "{module} has the digest {}, not {CRI_TOOLS_SUM}",
        download.sum
    );
    let mut build = Command::new("go");
    // critest is what Go calls a test.
    match name {
        "critest" => build.args(["test", "-c"]),
        _ => build.arg("build"),
    };
    build
        .args(["-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(folder.join(name))
        .arg(format!("./cmd/{name}"))
        .env("CGO_ENABLED", "0")
        .current_dir(&download.dir);
    stdout(&mut build).map(drop)
}

/// Whether there is a Go that can build them.
pub(super) fn check() -> Result<()> {
    let version = stdout(Command::new("go").args(["env", "GOVERSION"])).context(
        "the tests need Go 1.21 or newer to build Go programs: install it (https://go.dev/dl) and put it in PATH",
    )?;
    let minor = version
        .trim()
        .strip_prefix("go1.")
        .and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    match minor {
        Some(minor) if minor < GO_MINOR_MIN => {
            bail!(
                "the tests need Go 1.21 or newer to build Go programs; this is {}",
                version.trim()
            )
        }
        _ => Ok(()),
    }
}

/// Runs Go to the end; its standard output.
pub(super) fn stdout(command: &mut Command) -> Result<String> {
    let output = command.output().context("running go")?;
    ensure!(
        output.status.success(),
        "go failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("go printed something that is no text")
}

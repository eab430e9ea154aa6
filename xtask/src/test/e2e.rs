//! End-to-end tests: the daemon with real images and crictl, containers in microVMs.

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Count;
use crate::guest_image::{self, GuestImage};
use crate::lab::{self, Job};
use crate::progress::{say, step};
use crate::{build, kvm, setup, test_images};

/// An emulated host's share of the suite.
const TIMEOUT: Duration = Duration::from_secs(45 * 60);

/// Memory of an emulated host, MiB: several guests, images and a file system in memory.
const MEMORY_MIB: u32 = 6144;

/// Where the lab shows the folder that outlives it.
const EXCHANGE: &str = "/run/lab/exchange";

/// What the tests are told where to find.
#[derive(Debug)]
struct Parts {
    binaries: PathBuf,
    image: GuestImage,
    tools: PathBuf,
    images: PathBuf,
}

/// Builds everything once, then runs `host` here and `e2e` where KVM is.
pub(super) fn run(filter: &[String]) -> Result<Count> {
    setup::packages(setup::Need::ALL)?;
    let tools = setup::crictl()?;
    let parts = Parts {
        binaries: build::node()?,
        image: guest_image::both()?,
        tools,
        images: test_images::build()?,
    };
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

impl Parts {
    fn environment(&self) -> Vec<(String, String)> {
        [
            ("ISOPOD_TEST_BIN_DIR", &self.binaries),
            ("ISOPOD_TEST_KERNEL", &self.image.kernel),
            ("ISOPOD_TEST_INITRAMFS", &self.image.initramfs),
            ("ISOPOD_TEST_TOOLS", &self.tools),
            ("ISOPOD_TEST_IMAGES", &self.images),
        ]
        .map(|(name, path)| (name.to_owned(), path.display().to_string()))
        .into()
    }
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

/// Where KVM is not usable here, in as many emulated hosts at once as this machine has processors: each
/// of them has one.
fn in_microvms(binary: &Path, parts: &Parts, filter: &[String]) -> Result<Count> {
    let emulated = kvm::unusable();
    let (shares, exchange) = match &emulated {
        Some(why) => {
            say(&format!(
                "In an emulated host, some ten times slower: {why}"
            ));
            (shares(binary, filter)?, Some(Path::new(EXCHANGE)))
        }
        None => (vec![filter.to_vec()], None),
    };
    let counts = thread::scope(|scope| {
        let runs: Vec<_> = shares
            .iter()
            .map(|share| scope.spawn(move || share_in_microvms(binary, parts, share, exchange)))
            .collect();
        let ended = runs.into_iter().map(|run| match run.join() {
            Ok(count) => count,
            Err(panic) => resume_unwind(panic),
        });
        ended.collect::<Result<Vec<_>>>()
    })?;
    let mut sum = Count::default();
    for count in counts {
        sum += count;
    }
    Ok(sum)
}

/// The names of the tests, dealt out to as many emulated hosts as there are processors and memory for.
fn shares(binary: &Path, filter: &[String]) -> Result<Vec<Vec<String>>> {
    let output = Command::new(binary)
        .args(filter)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| format!("starting {}", binary.display()))?;
    ensure!(output.status.success(), "listing the tests failed");
    let list = String::from_utf8(output.stdout).context("the list of tests")?;
    let names: Vec<&str> = list
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .collect();
    let hosts = thread::available_parallelism()?.get();
    let hosts = hosts.min(available_mib()? / MEMORY_MIB as usize).max(1);
    let mut shares = vec![vec!["--exact".to_owned()]; hosts.min(names.len())];
    for (index, name) in names.iter().enumerate() {
        shares[index % hosts].push((*name).to_owned());
    }
    Ok(shares)
}

/// Memory that can be had without swapping, MiB (proc(5), `MemAvailable`).
fn available_mib() -> Result<usize> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok())
        .map(|kib| kib >> 10)
        .context("/proc/meminfo has no MemAvailable")
}

/// Output comes as whole lines as the tests run, and once more through a file, to be counted.
fn share_in_microvms(
    binary: &Path,
    parts: &Parts,
    share: &[String],
    exchange: Option<&Path>,
) -> Result<Count> {
    let folder = tempfile::tempdir().context("making a folder for the tests' output")?;
    let log = exchange.unwrap_or(folder.path()).join("tests.log");
    let script = r#"log=$1; shift; set -o pipefail; "$@" 2>&1 | tee "$log" | sed -u ''"#;
    let mut command: Vec<String> = ["bash", "-c", script, "tests"].map(str::to_owned).into();
    command.push(log.display().to_string());
    command.push(binary.display().to_string());
    command.extend(share.iter().cloned());
    command.push("--test-threads=1".to_owned());
    let mut job = Job::new(command)?;
    job.env = parts.environment();
    job.env.push(("ISOPOD_REQUIRE_KVM".into(), "1".into()));
    job.env
        .push(("ISOPOD_TEST_DATA".into(), "/var/lib/isopod".into()));
    job.memory_mib = MEMORY_MIB;
    job.timeout = Some(TIMEOUT);
    job.exchange = Some(folder.path().to_owned());
    let status = lab::where_kvm_is(&job)?;
    let log =
        fs::read_to_string(folder.path().join("tests.log")).context("reading the tests' output")?;
    let mut count = Count::default();
    for line in log.lines() {
        count.line(line);
    }
    ensure!(
        status == 0 || count.failed > 0,
        "the tests ended with status {status}"
    );
    Ok(count)
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
fn test_binary(name: &str) -> Result<PathBuf> {
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

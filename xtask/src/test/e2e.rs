//! End-to-end tests: the daemon with real images and crictl, containers in microVMs.

use std::collections::BTreeSet;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::Count;
use crate::guest_image::{self, GuestImage};
use crate::lab::{self, Job};
use crate::progress::{say, step};
use crate::{build, kvm, setup, test_images};

/// An emulated host's share of the suite.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Emulated hosts that may freeze before a share is given up.
const HOSTS_PER_SHARE: usize = 3;

/// The tests' output, in the folder that outlives an emulated host.
const LOG: &str = "tests.log";

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
            .map(|share| scope.spawn(move || share_to_its_end(binary, parts, share, exchange)))
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

/// Runs a share; what is left of it when the emulated host freezes, in another host.
fn share_to_its_end(
    binary: &Path,
    parts: &Parts,
    share: &[String],
    exchange: Option<&Path>,
) -> Result<Count> {
    let mut left = share.to_vec();
    let mut count = Count::default();
    for _ in 0..HOSTS_PER_SHARE {
        let folder = tempfile::tempdir().context("making a folder for the tests' output")?;
        let result = share_in_microvms(binary, parts, &left, (exchange, folder.path()));
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
    bail!("{HOSTS_PER_SHARE} emulated hosts froze, one after the other")
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
fn share_in_microvms(
    binary: &Path,
    parts: &Parts,
    share: &[String],
    (exchange, folder): (Option<&Path>, &Path),
) -> Result<u8> {
    let log = exchange.unwrap_or(folder).join(LOG);
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
    job.exchange = Some(folder.to_owned());
    lab::where_kvm_is(&job)
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

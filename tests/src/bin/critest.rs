//! Runs some of critest's specs on a node of its own, which has a CNI network.
//!
//! `isopod-critest FOLDER`, started in a network and a mount namespace of its own, for each list of
//! specs that is in the folder, named for the transport of streams:
//!
//! ```text
//! FOLDER/spdy.specs, websocket.specs    full names, one a line
//! FOLDER/spdy.json,  websocket.json     ginkgo's report
//! FOLDER/daemon.log                     what the daemon said
//! ```
//!
//! Where there is `FOLDER/benchmark.yaml`, critest's benchmarks run instead, with these parameters, and
//! leave their results in `FOLDER` as JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use isopod_tests::images::critest::REGISTRIES;
use isopod_tests::network::{self, Cni};
use isopod_tests::node::{self, Node, Options};
use isopod_tests::{environment, process};
use serde_json::json;

/// What ginkgo puts before the name of every spec of this suite.
const SUITE: &str = "CRI validation ";

/// How long one call may take: the lab is slow.
const CALL_LIMIT: &str = "15m";

/// How long all of it may take. Whoever runs this has a limit, too.
const SUITE_LIMIT: &str = "2h";

fn main() -> Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("usage: isopod-critest FOLDER")?;
    let folder = PathBuf::from(folder);
    network::set_up()?;
    hide_apparmor()?;
    let cni = Cni::new()?;
    let portmap = json!({
        "type": "portmap", "capabilities": { "portMappings": true }, "snat": true,
    });
    cni.plugins(&[cni.bridge(&["10.7.0.0/24"]), portmap])?;
    let options = Options::kvm().network(&cni).mirrored(REGISTRIES);
    node::run(options, |node| {
        let parameters = folder.join("benchmark.yaml");
        let result = if parameters.exists() {
            benchmark(node, &folder, &parameters)
        } else {
            both_transports(node, &folder)
        };
        fs::write(folder.join("daemon.log"), node.daemon_log())?;
        result
    })
}

fn both_transports(node: &Node, folder: &Path) -> Result<()> {
    specs(node, folder, "spdy", &[])?;
    let flags = [
        "-websocket-exec",
        "-websocket-attach",
        "-websocket-portforward",
    ];
    specs(node, folder, "websocket", &flags)
}

fn benchmark(node: &Node, folder: &Path, parameters: &Path) -> Result<()> {
    let mut command = critest(node)?;
    command
        .arg("-benchmark")
        .arg(format!(
            "-benchmarking-params-file={}",
            parameters.display()
        ))
        .arg(format!("-benchmarking-output-dir={}", folder.display()));
    let status = command.status().context("starting critest")?;
    ensure!(status.success(), "critest ended with {status}");
    Ok(())
}

/// critest asks the host whether there is AppArmor. Containers are not under this kernel but under a
/// guest's, which has none.
fn hide_apparmor() -> Result<()> {
    let enabled = "/sys/module/apparmor/parameters/enabled";
    if Path::new(enabled).exists() {
        network::run("mount", &["--bind", "/dev/null", enabled])?;
    }
    Ok(())
}

/// Runs critest. That specs fail is for the report to say.
fn specs(node: &Node, folder: &Path, transport: &str, flags: &[&str]) -> Result<()> {
    let Ok(specs) = fs::read_to_string(folder.join(format!("{transport}.specs"))) else {
        return Ok(());
    };
    let mut command = critest(node)?;
    command
        .arg(format!(
            "-ginkgo.json-report={}",
            folder.join(format!("{transport}.json")).display()
        ))
        .args(flags);
    for spec in specs.lines() {
        command.arg(format!("-ginkgo.focus=^{}$", escaped(SUITE, spec)));
    }
    let status = command.status().context("starting critest")?;
    println!("critest ({transport}) ended with {status}");
    Ok(())
}

/// critest, set up for the node's daemon.
fn critest(node: &Node) -> Result<Command> {
    let critest = environment::path(environment::TOOLS)?.join("critest");
    let endpoint = format!("unix://{}", node.socket().display());
    let search = std::env::var("PATH").unwrap_or_default();
    let mut command = process::command(critest);
    command
        .arg(format!("-runtime-endpoint={endpoint}"))
        .arg(format!("-image-endpoint={endpoint}"))
        .arg(format!("-runtime-service-timeout={CALL_LIMIT}"))
        .arg(format!("-image-service-timeout={CALL_LIMIT}"))
        .arg(format!("-ginkgo.timeout={SUITE_LIMIT}"))
        .args(["-ginkgo.no-color", "-ginkgo.seed=1"])
        .env("PATH", format!("{search}:/usr/sbin:/sbin"))
        .stdin(Stdio::null());
    Ok(command)
}

/// A regular expression (RE2) for exactly this name.
fn escaped(suite: &str, spec: &str) -> String {
    let mut expression = String::new();
    for letter in suite.chars().chain(spec.chars()) {
        if letter.is_ascii_punctuation() {
            expression.push('\\');
        }
        expression.push(letter);
    }
    expression
}

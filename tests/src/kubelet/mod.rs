//! A real kubelet without an API server, with a node's daemon as its only runtime.
//!
//! ```text
//! run(settings, test)            in a network and a mount namespace of the test's own
//!   private folders              over those that the kubelet and `deploy/` name
//!   node::run                    registry, CNI, `isopod serve`
//!     Kubelet::start             deploy/kubelet-config.yaml, and what a test needs beyond it
//!     test(&kubelet)             through static pods' files, the read-only port, the CRI
//!   the kubelet's cgroups        removed
//! ```
//!
//! - [`answers`](self): what the kubelet says over HTTP.
//! - [`pods`](self): static pods, and waiting for what becomes of them.
//! - [`deploy`]: the files that people copy.

mod answers;
pub mod deploy;
mod folders;
mod pods;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

pub use self::folders::cgroup;
pub use self::pods::{container, is, pod, restarts, status};
use crate::environment;
use crate::network::Cni;
use crate::node::{self, Node, Options};
use crate::process::{Child, command};
use crate::wait::wait_for;

/// The node's name, which static pods' names end with.
pub const NAME: &str = "node";

/// Pods' addresses.
const RANGE: &str = "10.8.0.0/24";

/// How long the kubelet may take to start or to end.
const PROCESS_LIMIT: Duration = Duration::from_secs(240);

/// A running kubelet, and its node.
#[derive(Debug)]
pub struct Kubelet<'a> {
    node: &'a Node,
    process: Mutex<Option<Child>>,
    /// Its configuration, and its log.
    folder: PathBuf,
}

/// Runs a test with a kubelet on a node of its own, inside [`crate::network::isolated`]. `settings` are
/// fields of a `KubeletConfiguration`, on top of `deploy/kubelet-config.yaml`.
///
/// # Errors
/// What the test returns; the kubelet or the node did not start; something was left behind.
pub fn run(
    options: Options,
    settings: &Value,
    test: impl FnOnce(&Kubelet<'_>) -> Result<()>,
) -> Result<()> {
    if !environment::has_kvm()? {
        return Ok(());
    }
    folders::give_node_an_address()?;
    let _folders = folders::private()?;
    let cni = Cni::new()?;
    cni.plugins(&[cni.bridge(&[RANGE])])?;
    let cgroups = folders::Cgroups::before();
    node::run(options.network(&cni), |node| {
        folders::link_socket(node)?;
        let kubelet = Kubelet {
            node,
            process: Mutex::new(None),
            folder: node.folder().join("kubelet"),
        };
        kubelet.configure(settings)?;
        kubelet.start()?;
        let result = test(&kubelet);
        if result.is_err() {
            kubelet.dump();
        }
        result?;
        kubelet.kill();
        Ok(())
    })?;
    cgroups.remove_new()
}

impl Kubelet<'_> {
    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        self.node
    }

    /// A folder for the test's own files.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn test_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.node.folder().join("test").join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Starts it, and waits until it is healthy.
    ///
    /// # Errors
    /// It ends, or does not become healthy in time.
    pub fn start(&self) -> Result<()> {
        let mut slot = self.process();
        ensure!(slot.is_none(), "the kubelet is running");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let search = std::env::var("PATH").unwrap_or_default();
        let process = command(environment::path(environment::TOOLS)?.join("kubelet"))
            .arg(format!("--config={}", deploy::kubelet_config().display()))
            .arg(format!("--config-dir={}", self.folder.display()))
            .arg(format!("--hostname-override={NAME}"))
            .arg("--v=2")
            .env("PATH", format!("{search}:/usr/sbin:/sbin"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the kubelet")?;
        *slot = Some(Child::new(process));
        drop(slot);
        let healthy = wait_for("the kubelet to be healthy", PROCESS_LIMIT, || {
            if let Some(Ok(Some(status))) = self.process().as_mut().map(Child::exited) {
                return Some(Err(status));
            }
            answers::is_healthy().then_some(Ok(()))
        });
        match healthy {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => {
                self.dump();
                bail!("the kubelet ended with {status}")
            }
            Err(error) => {
                self.dump();
                Err(error)
            }
        }
    }

    /// SIGKILL, as when a machine loses its power.
    pub fn kill(&self) {
        self.process().take();
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop(&self) -> Result<()> {
        let process = self.process().take();
        let mut process = process.context("the kubelet is not running")?;
        process.terminate(PROCESS_LIMIT)?;
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("kubelet.log")
    }

    /// Writes a drop-in beside the configuration that people copy: what a kubelet without a cluster, on a
    /// slow machine, needs beyond it.
    fn configure(&self, settings: &Value) -> Result<()> {
        fs::create_dir(&self.folder)?;
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            // Without a cluster nobody can be asked who may do what.
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "address": "127.0.0.1",
            "readOnlyPort": answers::PORT,
            "failSwapOn": false,
            "resolvConf": "",
            "fileCheckFrequency": "2s",
            "runtimeRequestTimeout": "15m",
            // Machines that run tests may be short of anything.
            "evictionHard": { "memory.available": "1Mi" },
        });
        let (Some(config), Some(settings)) = (config.as_object_mut(), settings.as_object()) else {
            bail!("the kubelet's settings are no object");
        };
        config.extend(settings.clone());
        let text = serde_json::to_string_pretty(&config)?;
        fs::write(self.folder.join("90-test.conf"), text)?;
        Ok(())
    }

    /// Prints the last lines of its log.
    fn dump(&self) {
        const LINES: usize = 150;
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LINES)..];
        eprintln!("---- kubelet\n{}", last.join("\n"));
    }
}

/// Where the kubelet looks for static pods, as `deploy/kubelet-config.yaml` says.
fn manifests() -> Result<PathBuf> {
    let config = deploy::read(&deploy::kubelet_config())?;
    let path = config["staticPodPath"].as_str();
    Ok(Path::new(path.context("no staticPodPath")?).to_owned())
}

//! A node for one test: a private daemon, its registry and its folders.
//!
//! ```text
//! run(options, test)
//!   Node::set_up  folders, registry, `isopod serve`, wait until it answers
//!   test(&node)   through crictl, through the CRI client, with signals
//!   finish        remove every pod and image, stop the daemon, look for leaks
//! ```
//!
//! If the test fails, the logs of daemon, VMMs and guests are printed instead, and everything is
//! killed. Tests share nothing, so they run side by side.

mod client;
mod crictl;
mod daemon;
mod leaks;
mod options;
mod pod;
mod reboot;
mod vmm;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

pub use self::client::{Client, assert_refused};
pub use self::crictl::{Crictl, CrictlError};
use self::daemon::Daemon;
use self::leaks::Baseline;
pub use self::options::{DataDir, Images, Options};
pub use self::pod::{container_config, pod_config, privileged, privileged_pod, shell};
use crate::environment;
use crate::network;
use crate::process::Process;
use crate::registry::{Access, Registry};

/// The registry host in the names of test images; a mirror in every node's configuration.
pub const REGISTRY: &str = "registry.test";

/// The name of a test image: `image("nginx")` is `registry.test/nginx:1`.
#[must_use]
pub fn image(name: &str) -> String {
    format!("{REGISTRY}/{name}:1")
}

/// A daemon with its folders and its registry.
#[derive(Debug)]
pub struct Node {
    /// Configuration, logs, the daemon's state folder: short, because it holds sockets.
    folder: TempDir,
    /// The daemon's root folder.
    data: TempDir,
    mounted: bool,
    options: Options,
    registry: Mutex<Option<Registry>>,
    daemon: Mutex<Option<Daemon>>,
    baseline: Baseline,
    /// Ids of sandboxes and containers that ever were, for the leak check.
    ids: Mutex<BTreeSet<String>>,
    finished: bool,
}

/// Starts a node, runs the test on it, and looks for what it left behind.
///
/// # Errors
/// What the test returns; the node did not start; something was left behind.
pub fn run(options: Options, test: impl FnOnce(&Node) -> Result<()>) -> Result<()> {
    if options.needs_kvm() && !environment::has_kvm()? {
        return Ok(());
    }
    let node = Node::set_up(options)?;
    test(&node)?;
    node.finish()
}

impl Node {
    fn set_up(options: Options) -> Result<Self> {
        let prefix = "it-";
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in("/run")?;
        let data = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(environment::data())?;
        let mut node = Self {
            folder,
            data,
            mounted: false,
            registry: Mutex::new(None),
            daemon: Mutex::new(None),
            baseline: Baseline::default(),
            ids: Mutex::default(),
            options,
            finished: false,
        };
        match node.options.data {
            DataDir::Large => {}
            DataDir::Small { mib } => {
                mount_tmpfs(node.root_dir(), mib)?;
                node.mounted = true;
            }
            DataDir::Disk { mib } => {
                mount_disk(&node.folder.path().join("disk"), node.root_dir(), mib)?;
                node.mounted = true;
            }
        }
        let endpoint = match &node.options.images {
            Images::None => None,
            Images::Endpoint(host) => Some(host.clone()),
            Images::Registry => {
                let storage = environment::path(environment::IMAGES)?;
                let registry = Registry::start(&storage, Access::ReadOnly)?;
                let host = registry.host();
                *lock(&node.registry) = Some(registry);
                Some(host)
            }
        };
        fs::create_dir(node.state_dir())?;
        fs::write(
            node.config(),
            node.options.config(&node, endpoint.as_deref())?,
        )?;
        node.baseline = Baseline::of_host();
        node.start_daemon()?;
        node.baseline.take_descriptors(node.daemon_pid()?);
        Ok(node)
    }

    /// Starts the daemon, which must not be running, and waits until it answers.
    ///
    /// # Errors
    /// It does not start, or does not answer.
    pub fn start_daemon(&self) -> Result<()> {
        let mut slot = lock(&self.daemon);
        ensure!(slot.is_none(), "the daemon is running");
        *slot = Some(Daemon::start(
            &self.config(),
            &self.folder.path().join("daemon.log"),
        )?);
        drop(slot);
        self.wait_until_ready()
    }

    /// SIGKILL for the daemon.
    pub fn kill_daemon(&self) {
        lock(&self.daemon).take();
    }

    /// SIGTERM for the daemon, which must then end with status 0.
    ///
    /// # Errors
    /// It does not end in time, or with another status.
    pub fn stop_daemon(&self) -> Result<()> {
        let daemon = lock(&self.daemon)
            .take()
            .context("the daemon is not running")?;
        daemon.stop()
    }

    /// The daemon's process id.
    ///
    /// # Errors
    /// It is not running.
    pub fn daemon_pid(&self) -> Result<i32> {
        lock(&self.daemon)
            .as_ref()
            .map(Daemon::pid)
            .context("the daemon is not running")
    }

    /// Ends the registry and its connections.
    pub fn stop_registry(&self) {
        lock(&self.registry).take();
    }

    /// A CRI client.
    #[must_use]
    pub fn cri(&self) -> Client<'_> {
        Client::new(self)
    }

    /// crictl, set up for this daemon.
    ///
    /// # Errors
    /// There is no crictl.
    pub fn crictl(&self) -> Result<Crictl<'_>> {
        Crictl::new(self)
    }

    /// `isopod` with this node's configuration.
    ///
    /// # Errors
    /// The binary was not built.
    pub fn isopod(&self) -> Result<Command> {
        let mut command = crate::process::command(environment::binary("isopod")?);
        command.arg("--config").arg(self.config());
        Ok(command)
    }

    /// A folder of this node for the test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("isopod.sock")
    }

    /// The daemon's `state_dir`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// The daemon's `root_dir`.
    #[must_use]
    pub fn root_dir(&self) -> &Path {
        self.data.path()
    }

    /// The daemon's configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// Where pods of this node log: `log_directory` of the pod called `name`.
    #[must_use]
    pub fn log_directory(&self, name: &str) -> PathBuf {
        self.folder.path().join("logs").join(name)
    }

    /// What the daemon logged so far.
    #[must_use]
    pub fn daemon_log(&self) -> String {
        let log = fs::read(self.folder.path().join("daemon.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Remembers an id, so that nothing on the host may still bear it at the end.
    pub(crate) fn remember(&self, id: &str) {
        lock(&self.ids).insert(id.to_owned());
    }

    fn finish(mut self) -> Result<()> {
        leaks::remove_everything(&self)?;
        self.stop_registry();
        leaks::check_running(&self, &self.baseline)?;
        self.stop_daemon()?;
        leaks::check_stopped(&self, &self.baseline)?;
        self.finished = true;
        Ok(())
    }

    /// Prints what helps to understand a failure.
    fn dump(&self) {
        let mut err = std::io::stderr().lock();
        let mut files = vec![self.folder.path().join("daemon.log")];
        for sandbox in fs::read_dir(self.state_dir().join("sandboxes"))
            .into_iter()
            .flatten()
            .flatten()
        {
            files.extend(
                ["vmm.log", "console.log", "exit.json"].map(|name| sandbox.path().join(name)),
            );
        }
        if let Some(registry) = lock(&self.registry).as_ref() {
            let _ = writeln!(err, "---- registry\n{}", registry.log());
        }
        for file in files.iter().filter(|file| file.exists()) {
            let text = fs::read(file).unwrap_or_default();
            // Printing is all that can be done here.
            let _ = writeln!(
                err,
                "---- {}\n{}",
                file.display(),
                String::from_utf8_lossy(&text)
            );
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.finished {
            self.dump();
            self.kill_daemon();
            self.stop_registry();
            for process in Process::all() {
                if process.pid != Process::own_pid() && process.uses(self.folder.path()) {
                    process.kill();
                }
            }
        }
        if self.mounted {
            // Lazily: a process that was just killed may still hold it.
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.data.path())
                .status();
        }
    }
}

fn mount_tmpfs(folder: &Path, mib: u32) -> Result<()> {
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "isopod-test"])
        .arg(folder)
        .status()?;
    ensure!(
        status.success(),
        "mounting a file system of {mib} MiB failed"
    );
    Ok(())
}

/// Mounts an empty ext4 whose disk is the file `disk`, which is made on a tmpfs.
fn mount_disk(disk: &Path, folder: &Path, mib: u32) -> Result<()> {
    fs::File::create(disk)?.set_len(u64::from(mib) << 20)?;
    let disk = disk.to_str().context("a path in UTF-8")?;
    let folder = folder.to_str().context("a path in UTF-8")?;
    network::run("modprobe", &["loop"])?;
    network::run("mkfs.ext4", &["-q", disk])?;
    network::run("mount", &["-o", "loop,noatime", disk, folder])?;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! What the kubelet and `deploy/` name on a host, for one test alone. Mounts vanish with the test's mount
//! namespace; the kubelet's cgroups have to be removed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{deploy, manifests};
use crate::environment;
use crate::network::run;
use crate::node::Node;
use crate::wait::wait_for;

/// Where the kubelet keeps things, which it is not told.
const KUBELET: [&str; 3] = ["/var/lib/kubelet", "/var/log/pods", "/var/log/containers"];

/// The address of the node, from the range for documentation (RFC 5737).
const ADDRESS: &str = "192.0.2.1/24";

/// Gives the namespace an address and a default route, as a node has.
pub(super) fn give_node_an_address() -> Result<()> {
    run("ip", &["link", "add", "node0", "type", "bridge"])?;
    run("ip", &["address", "add", ADDRESS, "dev", "node0"])?;
    run("ip", &["link", "set", "node0", "up"])?;
    run("ip", &["route", "add", "default", "dev", "node0"])?;
    Ok(())
}

/// Mounts empty folders over the host's; they lie where the daemons' data does.
pub(super) fn private() -> Result<TempDir> {
    let own = tempfile::Builder::new()
        .prefix("it-kubelet-")
        .tempdir_in(environment::data())?;
    let manifests = manifests()?;
    let socket = socket()?;
    let state = socket.parent().context("a socket lies in a folder")?;
    let all = KUBELET.iter().map(Path::new).chain([&*manifests, state]);
    for (number, folder) in all.enumerate() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let source = own.path().join(number.to_string());
        fs::create_dir(&source)?;
        let paths = [&source, folder].map(|path| path.display().to_string());
        run("mount", &["--bind", &paths[0], &paths[1]])?;
    }
    Ok(own)
}

/// Puts a link to the node's socket where `deploy/kubelet-config.yaml` says that it is.
pub(super) fn link_socket(node: &Node) -> Result<()> {
    let link = socket()?;
    symlink(node.socket(), &link).with_context(|| format!("linking {}", link.display()))
}

fn socket() -> Result<PathBuf> {
    let config = deploy::read(&deploy::kubelet_config())?;
    let endpoint = config["containerRuntimeEndpoint"].as_str();
    let path = endpoint.and_then(|endpoint| endpoint.strip_prefix("unix://"));
    Ok(path
        .context("containerRuntimeEndpoint is no socket")?
        .into())
}

/// The cgroups that a kubelet makes for its pods, by the name that the cgroupfs driver gives their root.
#[derive(Debug)]
pub(super) struct Cgroups {
    there: bool,
}

impl Cgroups {
    const ROOT: &str = "/sys/fs/cgroup/kubepods";

    pub(super) fn before() -> Self {
        let there = Path::new(Self::ROOT).exists();
        Self { there }
    }

    /// Removes them, unless they were there before.
    pub(super) fn remove_new(&self) -> Result<()> {
        if self.there {
            return Ok(());
        }
        let root = Path::new(Self::ROOT);
        wait_for(
            "the kubelet's cgroups to be empty",
            Duration::from_secs(30),
            || {
                remove(root);
                (!root.exists()).then_some(())
            },
        )
    }
}

fn remove(cgroup: &Path) {
    for child in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            remove(&child.path());
        }
    }
    // One that is still in use is tried again.
    let _ = fs::remove_dir(cgroup);
}

/// A pod's cgroup on the host.
#[must_use]
pub fn cgroup(uid: &str) -> Option<PathBuf> {
    find(Path::new("/sys/fs/cgroup"), &format!("pod{uid}"))
}

/// A cgroup below `folder` whose name ends so; the drivers put different things before it.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    folders.find_map(|path| {
        let systemd = format!("-{}.slice", name.replace('-', "_"));
        let own = path.file_name()?.to_str()?;
        if own == name || own.ends_with(&systemd) {
            return Some(path);
        }
        find(&path, name)
    })
}

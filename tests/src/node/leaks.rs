//! The leak check at the end of every test.
//!
//! First everything is removed through CRI, whatever state the test left it in. The daemon that
//! runs on must then have no child, no descriptor more than when it started, and empty folders.
//! After it was stopped, the host must bear no trace: no process, mount, socket, cgroup, loop
//! device or network namespace that names this node, its sandboxes or its containers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Node, lock};
use crate::process::Process;
use crate::wait::wait_for;

/// How long the daemon may take to let go of what it no longer needs.
const SETTLE: Duration = Duration::from_secs(30);

/// What was there before the test.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    loops: Vec<PathBuf>,
    namespaces: Vec<PathBuf>,
    /// How many descriptors of each kind the daemon has.
    descriptors: BTreeMap<String, usize>,
}

impl Baseline {
    pub(super) fn of_host() -> Self {
        Self {
            loops: loop_devices(),
            namespaces: entries("/run/netns"),
            descriptors: BTreeMap::new(),
        }
    }

    /// A daemon that has answered once and that nobody is connected to.
    pub(super) fn take_descriptors(&mut self, daemon: i32) {
        // The connection of the first call may not be closed yet: the smaller count is the truth.
        let first = descriptors(daemon);
        std::thread::sleep(Duration::from_millis(200));
        let second = descriptors(daemon);
        let count = |kinds: &BTreeMap<String, usize>| kinds.values().sum::<usize>();
        self.descriptors = if count(&second) < count(&first) {
            second
        } else {
            first
        };
    }
}

/// Removes pods and images through CRI.
pub(super) fn remove_everything(node: &Node) -> Result<()> {
    let cri = node.cri();
    for container in cri.containers(None)? {
        node.remember(&container.id);
    }
    for pod in cri.pods(None)? {
        node.remember(&pod.id);
        cri.stop_pod(&pod.id)
            .context("StopPodSandbox at the end of the test")?;
        cri.remove_pod(&pod.id)
            .context("RemovePodSandbox at the end of the test")?;
    }
    for image in cri.list_images()? {
        cri.remove_image(&image.id)
            .context("RemoveImage at the end of the test")?;
    }
    let left = (
        cri.containers(None)?.len(),
        cri.pods(None)?.len(),
        cri.list_images()?.len(),
    );
    if left != (0, 0, 0) {
        bail!("(containers, pods, images) left after removing all: {left:?}");
    }
    Ok(())
}

/// What the daemon, with nothing to look after, may hold.
pub(super) fn check_running(node: &Node, baseline: &Baseline) -> Result<()> {
    let daemon = node.daemon_pid()?;
    settle(|| {
        let mut leaks = Vec::new();
        for child in Process::all()
            .into_iter()
            .filter(|process| process.parent == daemon)
        {
            leaks.push(format!("child of the daemon: {child:?}"));
        }
        for (kind, count) in descriptors(daemon) {
            let before = baseline.descriptors.get(&kind).copied().unwrap_or(0);
            if count > before {
                leaks.push(format!(
                    "the daemon has {count} descriptors of {kind}, {before} at its start"
                ));
            }
        }
        leaks.extend(left_in_folders(node));
        leaks
    })
}

/// What may be on the host without the daemon.
pub(super) fn check_stopped(node: &Node, baseline: &Baseline) -> Result<()> {
    settle(|| {
        let mut leaks = Vec::new();
        let marks = marks(node);
        let marked = |text: &str| marks.iter().any(|mark| text.contains(mark.as_str()));
        for process in Process::all() {
            let own = process.pid == Process::own_pid();
            let ours = process.uses(node.folder()) || process.uses(node.root_dir());
            if !own && (ours || marked(&process.command_line)) {
                leaks.push(format!("process {process:?}"));
            }
        }
        for line in lines("/proc/self/mountinfo")
            .into_iter()
            .filter(|line| marked(line))
        {
            // The harness' own is at the root of the data (proc(5), mountinfo's fifth field).
            let point = line.split_whitespace().nth(4).map(Path::new);
            if !(node.mounted && point == Some(node.root_dir())) {
                leaks.push(format!("mount {line}"));
            }
        }
        for line in lines("/proc/net/unix")
            .into_iter()
            .filter(|line| marked(line))
        {
            leaks.push(format!("socket {line}"));
        }
        for cgroup in cgroups(Path::new("/sys/fs/cgroup")) {
            if marked(&cgroup.display().to_string()) {
                leaks.push(format!("cgroup {}", cgroup.display()));
            }
        }
        let new = |now: Vec<PathBuf>, before: &[PathBuf]| {
            now.into_iter()
                .filter(|path| !before.contains(path))
                .collect::<Vec<_>>()
        };
        for path in new(loop_devices(), &baseline.loops) {
            leaks.push(format!("loop device of {}", path.display()));
        }
        for path in new(entries("/run/netns"), &baseline.namespaces) {
            leaks.push(format!("network namespace {}", path.display()));
        }
        if node.socket().exists() {
            leaks.push(format!("socket {}", node.socket().display()));
        }
        leaks
    })
}

/// Waits until there are no leaks, and complains about those that stay.
fn settle(mut check: impl FnMut() -> Vec<String>) -> Result<()> {
    let mut leaks = Vec::new();
    let settled = wait_for("leaks to go away", SETTLE, || {
        leaks = check();
        leaks.is_empty().then_some(())
    });
    settled.with_context(|| format!("left behind:\n  {}", leaks.join("\n  ")))
}

/// Text that only this node's things bear.
fn marks(node: &Node) -> Vec<String> {
    let mut marks: Vec<String> = lock(&node.ids).iter().cloned().collect();
    marks.push(node.folder().display().to_string());
    marks.push(node.root_dir().display().to_string());
    marks
}

/// Files of sandboxes and images that are no longer. The image store's folders may stay.
fn left_in_folders(node: &Node) -> Vec<String> {
    let mut left = Vec::new();
    for folder in [
        node.state_dir().join("sandboxes"),
        node.root_dir().join("sandboxes"),
    ] {
        left.extend(
            entries(&folder)
                .iter()
                .map(|path| format!("file {}", path.display())),
        );
    }
    // A cache: one empty file system per size of writable disk. And the table of images' names,
    // which names none.
    let templates = node.root_dir().join("templates");
    let names = node.root_dir().join("images/names.json");
    for file in files(node.root_dir()) {
        let empty = file == names && fs::metadata(&file).is_ok_and(|names| names.len() < 64);
        if !file.starts_with(&templates) && !empty {
            left.push(format!("file {}", file.display()));
        }
    }
    left
}

/// How many descriptors of each kind a process has. Files of `/proc` and `/sys` and the like have
/// their path, sockets and pipes only their kind.
fn descriptors(pid: i32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for (_, target) in Process::descriptors(pid) {
        let target = target.display().to_string();
        let kind = match target.split_once(":[") {
            Some((kind, number)) if number.trim_end_matches(']').parse::<u64>().is_ok() => kind,
            _ => &target,
        };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

fn loop_devices() -> Vec<PathBuf> {
    entries("/sys/block")
        .iter()
        .filter_map(|device| fs::read_to_string(device.join("loop/backing_file")).ok())
        .map(|file| PathBuf::from(file.trim()))
        .collect()
}

pub(super) fn cgroups(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(folder)
        .into_iter()
        .filter(|path| path.is_dir() && !path.is_symlink())
    {
        found.extend(cgroups(&path));
        found.push(path);
    }
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(folder) {
        if path.is_dir() && !path.is_symlink() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

pub(super) fn entries(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

fn lines(file: &str) -> Vec<String> {
    let text = fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .map(ToOwned::to_owned)
        .collect()
}

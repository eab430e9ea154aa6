//! The cgroup of the host that a sandbox's VMM lives in: `isopod-<id>` below the pod's own, so that
//! the limits and the accounting of the pod hold for all of its guest's memory and processors.
//!
//! `sandbox` makes one before it starts a VMM, which is born in it, and removes it when the VMM has
//! gone. Where it lies follows from the pod's configuration and the sandbox's id alone, so a crash
//! loses none. Folders above it that were missing are made and marked as made here; the last
//! sandbox below them takes them away. Everything here blocks, for some milliseconds.

mod parent;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use rustix::fs::{XattrFlags, getxattr, setxattr};

pub(crate) use self::parent::check_parent;
use self::parent::parent_path;
use crate::field::FieldError;
use crate::id::SandboxId;

/// Where the unified hierarchy is mounted, and where beside those of version 1.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// On folders that were made here beside a sandbox's own.
const MARK: &str = "trusted.isopod";
/// What a pod is accounted for and limited by.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// How long the kernel may take to let go of a process that has ended.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);
/// How often it is asked.
const EMPTY_INTERVAL: Duration = Duration::from_millis(10);

/// A cgroup could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The kernel refused.
    #[error("{action} the cgroup {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It cannot be told where to run.
    #[error("the cgroup {} has no cpuset controller", .0.display())]
    NoCpuset(PathBuf),
    /// It takes no processes.
    #[error("the cgroup {} is of type {kind:?} and takes no processes", path.display())]
    Type {
        /// Which.
        path: PathBuf,
        /// What `cgroup.type` says.
        kind: String,
    },
}

impl CgroupError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Memory of a sandbox that the host cannot take back, and the limit of the pod that it counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// Memory without a file behind it: a guest's, for the most part.
    pub(crate) bytes: u64,
    /// `memory.max` of the sandbox's parent.
    pub(crate) max_bytes: u64,
}

/// The cgroups of this node's sandboxes.
#[derive(Debug)]
pub(crate) struct Cgroups {
    /// The unified hierarchy, if there is one.
    root: Option<PathBuf>,
    /// Folders that sandboxes share come and go one at a time.
    shared: Mutex<()>,
}

impl Cgroups {
    /// Those of this machine.
    pub(crate) fn of_host() -> Self {
        let is_unified =
            |path: &Path| statfs(path).is_ok_and(|at| at.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let root = ROOTS.map(PathBuf::from);
        let root = root.into_iter().find(|path| is_unified(path));
        if root.is_none() {
            tracing::warn!(
                "no cgroup version 2 is mounted on /sys/fs/cgroup: VMMs are accounted to the daemon"
            );
        }
        Self {
            root,
            shared: Mutex::default(),
        }
    }

    /// Whether this machine can honour a pod's cgroup.
    ///
    /// # Errors
    ///
    /// When it has no cgroup version 2 and the pod names a parent.
    pub(crate) fn check(&self, parent: &str) -> Result<(), FieldError> {
        if self.root.is_some() || parent.is_empty() {
            return Ok(());
        }
        let reason = "cannot be honoured: no cgroup version 2 is mounted on /sys/fs/cgroup";
        Err(FieldError::new(parent::FIELD, reason))
    }

    /// Makes a sandbox's cgroup: its `cgroup.procs`, open for a process to move itself there.
    /// `None` where there are no cgroups.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; what was made is [removed](Self::remove) by the caller.
    pub(crate) fn create(
        &self,
        parent: &str,
        id: &SandboxId,
    ) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(root) = &self.root else {
            return Ok(None);
        };
        let own = own(root, parent, id);
        let _alone = self.alone();
        let shared = own.strip_prefix(root).ok().and_then(Path::parent);
        let mut at = root.clone();
        enable_controllers(&at);
        for name in shared.into_iter().flatten() {
            at.push(name);
            make_shared(&at)?;
            enable_controllers(&at);
        }
        fs::create_dir(&own).map_err(CgroupError::io("creating", &own))?;
        let kind = fs::read_to_string(own.join("cgroup.type"));
        let kind = kind.map_err(CgroupError::io("reading the type of", &own))?;
        if kind.trim() != "domain" {
            let kind = kind.trim().to_owned();
            return Err(CgroupError::Type { path: own, kind });
        }
        let processes = File::options().write(true).open(own.join("cgroup.procs"));
        let processes = processes.map_err(CgroupError::io("opening", &own))?;
        Ok(Some(processes.into()))
    }

    /// Removes a sandbox's cgroup, whose VMM has ended, and the folders that were made for it and
    /// hold nothing else. A process that is still in it is killed. Idempotent.
    ///
    /// # Errors
    ///
    /// When a process is in it and stays.
    pub(crate) fn remove(&self, parent: &str, id: &SandboxId) -> Result<(), CgroupError> {
        let Some(root) = &self.root else {
            return Ok(());
        };
        let own = own(root, parent, id);
        remove_when_empty(&own).map_err(CgroupError::io("removing", &own))?;
        let _alone = self.alone();
        for shared in own.ancestors().skip(1) {
            // Not empty: another pod's, too.
            if shared == root || !is_marked(shared) || fs::remove_dir(shared).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Lets a sandbox run on these processors and memory nodes of the host alone; an empty list
    /// stands for all of its parent's.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: the host has none of these, or nobody can be told.
    pub(crate) fn confine(
        &self,
        parent: &str,
        id: &SandboxId,
        cpus: &str,
        mems: &str,
    ) -> Result<(), CgroupError> {
        let own = self.root.as_ref().map(|root| own(root, parent, id));
        for (file, list) in [("cpuset.cpus", cpus), ("cpuset.mems", mems)] {
            let file = own.as_ref().map(|own| own.join(file));
            match file.filter(|file| file.exists()) {
                Some(file) => {
                    write_set(&file, list).map_err(CgroupError::io("confining with", &file))?;
                }
                None if list.is_empty() => {}
                None => return Err(CgroupError::NoCpuset(own.unwrap_or_default())),
            }
        }
        Ok(())
    }

    /// What a sandbox holds of the memory that its parent is limited to; `None` where nothing limits
    /// it, or nobody says.
    pub(crate) fn held(&self, parent: &str, id: &SandboxId) -> Option<Held> {
        let own = own(self.root.as_ref()?, parent, id);
        let max = fs::read_to_string(own.parent()?.join("memory.max")).ok()?;
        let stat = fs::read_to_string(own.join("memory.stat")).ok()?;
        let anon = stat.lines().find_map(|line| line.strip_prefix("anon "))?;
        Some(Held {
            bytes: anon.parse().ok()?,
            max_bytes: max.trim().parse().ok()?,
        })
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a sandbox's cgroup is. Its parent was checked when the sandbox was asked for.
fn own(root: &Path, parent: &str, id: &SandboxId) -> PathBuf {
    let parent = parent_path(parent).unwrap_or_default();
    root.join(parent).join(format!("isopod-{id}"))
}

fn make_shared(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => setxattr(path, MARK, b"1", XattrFlags::empty())
            .map_err(io::Error::from)
            .map_err(CgroupError::io("marking", path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(CgroupError::io("creating", path)(error)),
    }
}

fn is_marked(path: &Path) -> bool {
    getxattr(path, MARK, &mut [0_u8; 1]).is_ok_and(|length| length == 1)
}

/// Writes a list of processors or memory nodes. One that was there cannot be emptied while processes
/// are in the cgroup: all that the parent has takes its place.
fn write_set(file: &Path, list: &str) -> io::Result<()> {
    if !list.is_empty() {
        return fs::write(file, list);
    }
    if fs::read_to_string(file)?.trim().is_empty() {
        return Ok(());
    }
    let own = file.parent().unwrap_or(file);
    let name = file.file_name().unwrap_or_default().display();
    let all = fs::read(own.with_file_name(format!("{name}.effective")))?;
    fs::write(file, all)
}

/// Lets children of a cgroup be accounted for. One with processes of its own cannot; its limits
/// hold for what is below it all the same.
fn enable_controllers(path: &Path) {
    let has = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    let (there, enabled) = (has("cgroup.controllers"), has("cgroup.subtree_control"));
    let lists = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    for name in CONTROLLERS {
        if !lists(&there, name) || lists(&enabled, name) {
            continue;
        }
        if let Err(error) = fs::write(path.join("cgroup.subtree_control"), format!("+{name}")) {
            let path = path.display();
            tracing::debug!(%path, controller = name, %error, "could not enable a controller");
        }
    }
}

fn remove_when_empty(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_LIMIT;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                // Kernels before Linux 5.14 have no such file, and wait for what ends by itself.
                let _missing = fs::write(path.join("cgroup.kill"), "1");
                std::thread::sleep(EMPTY_INTERVAL);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    /// This machine's cgroups, or `None` after the test was skipped.
    fn cgroups() -> Option<(Cgroups, PathBuf)> {
        let cgroups = Cgroups::of_host();
        match cgroups.root.clone() {
            Some(root) if rustix::process::geteuid().is_root() => Some((cgroups, root)),
            _ => {
                isopod_tests::skip("needs root and cgroup version 2");
                None
            }
        }
    }

    #[test]
    fn folders_made_for_sandboxes_go_with_the_last_of_them_and_others_stay() {
        let Some((cgroups, root)) = cgroups() else {
            return;
        };
        let (one, two) = (SandboxId::random().unwrap(), SandboxId::random().unwrap());
        let there = root.join(format!("test-{one}"));
        fs::create_dir(&there).unwrap();
        let parent = format!("/test-{one}/pods/pod1");
        drop(cgroups.create(&parent, &one).unwrap().unwrap());
        drop(cgroups.create(&parent, &two).unwrap().unwrap());
        cgroups.remove(&parent, &one).unwrap();
        cgroups.remove(&parent, &one).unwrap();
        assert!(there.join(format!("pods/pod1/isopod-{two}")).exists());
        assert!(!there.join(format!("pods/pod1/isopod-{one}")).exists());
        cgroups.remove(&parent, &two).unwrap();
        assert!(!there.join("pods").exists(), "what was made is gone");
        fs::remove_dir(&there).expect("what was there has stayed, and is empty");
    }

    #[test]
    fn a_process_that_is_left_in_a_cgroup_is_killed_with_it() {
        let Some((cgroups, _)) = cgroups() else {
            return;
        };
        let id = SandboxId::random().unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let procs = cgroups.create("", &id).unwrap().unwrap();
        write!(File::from(procs), "{}", child.id()).unwrap();
        let membership = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        assert!(
            membership.contains(&format!("0::/isopod-{id}\n")),
            "{membership}"
        );
        // Nobody reaps it before: what has ended no longer counts.
        cgroups.remove("", &id).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn what_a_sandbox_holds_is_told_where_its_pod_is_limited() {
        let root = tempfile::tempdir().unwrap();
        let cgroups = Cgroups {
            root: Some(root.path().to_owned()),
            shared: Mutex::default(),
        };
        let id = SandboxId::random().unwrap();
        let own = own(root.path(), "/pod", &id);
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("memory.stat"), "anon 4096\nfile 1\n").unwrap();
        assert_eq!(cgroups.held("/pod", &id), None);
        let max = own.parent().unwrap().join("memory.max");
        fs::write(&max, "max\n").unwrap();
        assert_eq!(cgroups.held("/pod", &id), None);
        fs::write(&max, "8192\n").unwrap();
        let held = Held {
            bytes: 4096,
            max_bytes: 8192,
        };
        assert_eq!(cgroups.held("/pod", &id), Some(held));
        let other = SandboxId::random().unwrap();
        assert_eq!(cgroups.held("/pod", &other), None);
    }

    #[test]
    fn without_cgroups_only_a_parent_that_was_asked_for_is_missed() {
        let none = Cgroups {
            root: None,
            shared: Mutex::default(),
        };
        none.check("").unwrap();
        assert_eq!(none.check("/pods").unwrap_err().field, parent::FIELD);
        let id = SandboxId::random().unwrap();
        assert!(none.create("", &id).unwrap().is_none());
        none.remove("", &id).unwrap();
    }
}

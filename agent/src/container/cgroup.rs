//! A container's control group (cgroup v2).
//!
//! libcontainer makes it and sets its limits; this is what the agent does with it afterwards. Each
//! exec has a child group, in which no controller is enabled: limits and accounting stay with the
//! container's group, and an exec can be killed without touching its neighbours. A child group
//! without controllers does not count for the rule that a group with controllers enabled for its
//! children has no processes of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::{Manager, V2ManagerError};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::io::pread;
use tokio::io::Interest;

use super::DevicesError;
use super::devices;
use crate::descriptor::watch;
use crate::process::Signal;

/// Where cgroup v2 is mounted; libcontainer knows no other place.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// Depth to which a group's children are followed: a container may nest its own.
const DEPTH_MAX: usize = 32;

/// Room for `cgroup.events`, in bytes: two short lines.
const EVENTS_MAX: usize = 256;

/// How often a group that has just emptied is tried to be removed. The kernel takes dying tasks off
/// a group a moment after it says that the group is empty.
const REMOVE_ATTEMPTS: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// What went wrong with a group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// A file or directory of it.
    #[error("cgroup {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit that the kernel does not take.
    #[error("changing limits: {0}")]
    Limit(String),
    /// Its processes do not die.
    #[error("cgroup {0} still has processes after they were killed")]
    Populated(PathBuf),
}

/// A group, which may not exist yet or any more.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The group at `path`, absolute in the hierarchy.
    pub(crate) fn new(path: &Path) -> Self {
        let relative = path.strip_prefix("/").unwrap_or(path);
        Self {
            path: Path::new(MOUNT).join(relative),
        }
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Limits the devices that processes in the group and below can use.
    ///
    /// # Errors
    ///
    /// [`DevicesError`].
    pub(crate) fn restrict_devices(&self, rules: &[LinuxDeviceCgroup]) -> Result<(), DevicesError> {
        devices::restrict(&self.path, rules)
    }

    /// Changes the limits that `resources` names.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Limit`] when the kernel does not take one of them; those before it hold.
    pub(crate) fn limit(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let failed = |error: V2ManagerError| CgroupError::Limit(error.to_string());
        let relative = self.path.strip_prefix(MOUNT).unwrap_or(&self.path);
        let manager = Manager::new(MOUNT.into(), relative.to_owned()).map_err(failed)?;
        let options = ControllerOpt {
            resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        manager.apply(&options).map_err(failed)
    }

    /// Changes how readily the out-of-memory killer takes each process that is in the group now
    /// (`proc(5)`, `oom_score_adj`).
    ///
    /// # Errors
    ///
    /// When the kernel refuses the value.
    pub(crate) fn set_oom_score_adj(&self, value: i32) -> Result<(), CgroupError> {
        for pid in self.pids()? {
            let path = PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
            match fs::write(&path, value.to_string()) {
                // It has ended.
                Err(source) if source.raw_os_error() == Some(libc::ESRCH) || gone(&source) => {}
                result => result.map_err(|source| CgroupError::Io { path, source })?,
            }
        }
        Ok(())
    }

    /// Makes the group `name` below this one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(crate) fn create_child(&self, name: &str) -> Result<Self, CgroupError> {
        let path = self.path.join(name);
        fs::create_dir(&path).map_err(|source| CgroupError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path })
    }

    /// Sends SIGKILL to every process in the group and below. One that is gone is fine.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.kill");
        match fs::write(&path, "1") {
            Err(source) if !gone(&source) => Err(CgroupError::Io { path, source }),
            _ => Ok(()),
        }
    }

    /// Sends `signal` to every process in the group and below.
    ///
    /// # Errors
    ///
    /// When the group cannot be read.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), CgroupError> {
        if signal == Signal::KILL {
            return self.kill();
        }
        for pid in self.pids()? {
            // A process that ended since the file was read had nothing left to do.
            let _ = signal.send(Pid::from_raw(pid));
        }
        Ok(())
    }

    /// The processes in the group and below.
    ///
    /// # Errors
    ///
    /// When a group cannot be read for another reason than that it is gone.
    pub(crate) fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for group in self.tree()? {
            let path = group.join("cgroup.procs");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(source) if gone(&source) => continue,
                Err(source) => return Err(CgroupError::Io { path, source }),
            };
            let listed = text.lines().filter_map(|line| line.parse::<i32>().ok());
            pids.extend(listed.filter(|pid| *pid > 0));
        }
        Ok(pids)
    }

    /// Whether the kernel's out-of-memory killer ended a process in the group or below. False where
    /// the memory controller is not available.
    pub(crate) fn oom_killed(&self) -> bool {
        fs::read_to_string(self.path.join("memory.events")).is_ok_and(|text| oom_kills(&text) > 0)
    }

    /// Waits until no process is left in the group and below.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Populated`] after `timeout`.
    pub(crate) async fn wait_empty(&self, timeout: Duration) -> Result<(), CgroupError> {
        match tokio::time::timeout(timeout, self.emptied()).await {
            Ok(Err(source)) if !gone(&source) => Err(CgroupError::Io {
                path: self.path.join("cgroup.events"),
                source,
            }),
            Ok(_) => Ok(()),
            Err(_elapsed) => Err(CgroupError::Populated(self.path.clone())),
        }
    }

    /// The kernel marks `cgroup.events` as exceptional (`POLLPRI`) whenever it changes.
    async fn emptied(&self) -> io::Result<()> {
        let file = fs::File::open(self.path.join("cgroup.events"))?;
        let events = watch(file.into(), Interest::PRIORITY)?;
        loop {
            let mut text = [0; EVENTS_MAX];
            let length = pread(events.get_ref(), &mut text, 0)?;
            let text = String::from_utf8_lossy(&text[..length]);
            if text.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }

    /// Removes the group and those below it; they must be empty. One that is gone is fine.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, a process being left for example.
    pub(crate) async fn remove(&self) -> Result<(), CgroupError> {
        for group in self.tree()?.into_iter().rev() {
            let mut attempt = 0;
            loop {
                match fs::remove_dir(&group) {
                    Ok(()) => break,
                    Err(source) if gone(&source) => break,
                    Err(_) if attempt < REMOVE_ATTEMPTS => attempt += 1,
                    Err(source) => {
                        return Err(CgroupError::Io {
                            path: group,
                            source,
                        });
                    }
                }
                tokio::time::sleep(REMOVE_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Removes the group if it has become empty.
    pub(crate) fn remove_if_empty(&self) {
        // A process that the exec left behind keeps it until the container is deleted.
        let _ = fs::remove_dir(&self.path);
    }

    /// The group and all below it, parents before children.
    fn tree(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mut found = vec![self.path.clone()];
        let mut level = 0..1;
        for _ in 0..DEPTH_MAX {
            for index in level.clone() {
                let path = found[index].clone();
                let entries = match fs::read_dir(&path) {
                    Ok(entries) => entries,
                    Err(source) if gone(&source) => continue,
                    Err(source) => return Err(CgroupError::Io { path, source }),
                };
                found.extend(
                    entries
                        .flatten()
                        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                        .map(|entry| entry.path()),
                );
            }
            level = level.end..found.len();
        }
        Ok(found)
    }
}

/// `ENODEV` is what a file of a removed group answers.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The `oom_kill` count of a `memory.events` file (kernel documentation, cgroup-v2, memory).
fn oom_kills(events: &str) -> u64 {
    events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_counts_processes_and_not_group_events() {
        assert_eq!(
            oom_kills("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n"),
            2
        );
        assert_eq!(oom_kills("low 0\noom 3\noom_kill 0\n"), 0);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn a_group_that_is_gone_is_not_an_error() {
        let group = Cgroup::new(Path::new("/isopod-no-such-group"));
        assert!(group.kill().is_ok());
        assert!(group.signal(Signal::TERM).is_ok());
        assert!(!group.oom_killed());
    }
}

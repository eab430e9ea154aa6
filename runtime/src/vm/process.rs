//! A VMM's process: the daemon's own child, or one that an earlier daemon started.

#![expect(unsafe_code, reason = "tokio watches a raw descriptor")]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What tells a process from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot (`proc_pid_stat(5)`, field 22).
    pub(crate) start_time: u64,
}

/// A process that can be waited for and killed without the risk of hitting another one.
#[derive(Debug)]
pub(crate) struct VmmProcess {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
}

impl VmmProcess {
    /// Takes hold of a child that was just started and not waited for.
    pub(super) fn of_child(pid: i32) -> io::Result<Self> {
        let pidfd = open(pid)?;
        let start_time = start_time(pid)?;
        Self::new(ProcessId { pid, start_time }, pidfd)
    }

    /// Takes hold of a process by what was recorded of it; `None` when it has ended.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason than that it is gone.
    pub(super) fn of_record(id: ProcessId) -> io::Result<Option<Self>> {
        let pidfd = match open(id.pid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            opened => opened?,
        };
        // The number cannot change hands any more, so what is read now is about this process.
        match start_time(id.pid) {
            Ok(start_time) if start_time == id.start_time => Self::new(id, pidfd).map(Some),
            _ => Ok(None),
        }
    }

    fn new(id: ProcessId, pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` is open and names the same descriptor for as long as it lives, and
        // the `AsyncFd` owns it.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self { id, pidfd })
    }

    /// What to record.
    pub(crate) fn id(&self) -> ProcessId {
        self.id
    }

    /// Waits until the process has ended, and reaps it when it is ours.
    pub(super) async fn ended(&self) {
        // An error means that the runtime shuts down, and then nobody waits.
        if self.pidfd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
        // ECHILD: an adopted process, which init reaps.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let pidfd = std::os::fd::AsFd::as_fd(self.pidfd.get_ref());
        let _reaped = rustix::process::waitid(WaitId::PidFd(pidfd), options);
    }

    /// Kills the process. One that has ended already is fine.
    pub(super) fn kill(&self) {
        // ESRCH alone can happen: it has ended.
        let _gone = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// Kills the process and waits; false when it is still there after `limit`.
    pub(super) async fn kill_and_wait(&self, limit: Duration) -> bool {
        self.kill();
        tokio::time::timeout(limit, self.ended()).await.is_ok()
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Field 22 of `/proc/<pid>/stat`. The second field is the command's name, in parentheses, and may
/// hold anything, parentheses too: count from the last one.
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Every VMM of this user that runs for a folder directly under `sandboxes`, whoever started it:
/// with the folder that its `--dir` names. Blocking.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub(crate) fn find_vmms(sandboxes: &Path) -> io::Result<Vec<(PathBuf, ProcessId)>> {
    let own_uid = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let owned = entry
            .metadata()
            .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == own_uid);
        if !owned {
            continue;
        }
        let Ok(command_line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let Some(dir) = dir_argument(&command_line) else {
            continue;
        };
        if dir.parent() != Some(sandboxes) {
            continue;
        }
        if let Ok(start_time) = start_time(pid) {
            found.push((dir, ProcessId { pid, start_time }));
        }
    }
    Ok(found)
}

/// The value of `--dir` when it is the first argument, where the daemon puts it.
fn dir_argument(command_line: &[u8]) -> Option<PathBuf> {
    let mut arguments = command_line.split(|&byte| byte == 0).skip(1);
    if arguments.next()? != b"--dir" {
        return None;
    }
    std::str::from_utf8(arguments.next()?)
        .ok()
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn start_time_is_found_behind_a_name_with_parentheses() {
        let stat = b"7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time(b"7 (a"), None);
    }

    #[tokio::test]
    async fn recorded_process_is_adopted_and_a_later_one_with_its_number_is_not() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let id = VmmProcess::of_child(pid).unwrap().id();

        let later = ProcessId {
            start_time: id.start_time + 1,
            ..id
        };
        assert!(VmmProcess::of_record(later).unwrap().is_none());
        let adopted = VmmProcess::of_record(id).unwrap().unwrap();
        assert!(adopted.kill_and_wait(Duration::from_secs(10)).await);
        assert!(VmmProcess::of_record(id).unwrap().is_none());
        // Already reaped through the pidfd.
        assert!(child.wait().is_err());
    }

    #[test]
    fn vmm_is_recognised_by_its_folder_alone() {
        let dir = |text: &[u8]| dir_argument(text);
        assert_eq!(
            dir(b"isopod-vmm\0--dir\0/run/x/1\0"),
            Some("/run/x/1".into())
        );
        assert_eq!(dir(b"grep\0x\0--dir\0/run/x/1\0"), None);
        assert_eq!(dir(b""), None);
    }
}

//! Child processes that do not outlive the test, and looking at other processes in `/proc`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_for;

/// A command whose process the kernel kills when the thread that starts it ends: a test run that is
/// cut short leaves nothing behind.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A child process; dropping it kills it.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
}

impl Child {
    /// Takes over a child.
    #[must_use]
    pub fn new(inner: std::process::Child) -> Self {
        Self { inner }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.inner.id()).expect("Linux process ids are below 2^22")
    }

    /// Sends SIGKILL and collects the process.
    pub fn kill(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.inner.kill();
        let _ = self.inner.wait();
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.inner.try_wait()?)
    }

    /// Sends SIGTERM and waits for the process to end.
    ///
    /// # Errors
    /// It is still there after the limit.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).context("sending SIGTERM")?;
        wait_for("the process to end after SIGTERM", limit, || {
            self.inner.try_wait().transpose()
        })?
        .context("waiting for the process")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Resident memory of a process, KiB; of its heap alone if asked for.
///
/// # Errors
/// It is gone, or another user's.
pub fn resident(pid: i32, heap: bool) -> Result<i64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut counts = !heap;
    let mut sum = 0;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if heap && !first.ends_with(':') {
            counts = line.ends_with("[heap]");
        } else if counts && first == "Rss:" {
            let number = line.split_whitespace().nth(1).context("Rss")?;
            sum += number.parse::<i64>()?;
        }
    }
    Ok(sum)
}

/// A process as `/proc` shows it. Every field is empty once it is gone.
#[derive(Debug, Clone)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    /// The parent's.
    pub parent: i32,
    /// Arguments, separated by spaces.
    pub command_line: String,
    /// `R`, `S`, `Z` and so on.
    pub state: char,
}

impl Process {
    /// Every process that can be seen.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(Self::read)
            .collect()
    }

    /// The test's own process id.
    #[must_use]
    pub fn own_pid() -> i32 {
        Pid::this().as_raw()
    }

    /// Sends SIGKILL. A process that is gone already has what it should.
    pub fn kill(&self) {
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
    }

    /// One process.
    #[must_use]
    pub fn read(pid: i32) -> Option<Self> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = line
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .collect::<Vec<_>>();
        // proc(5): the state and the parent come after the name, which may hold anything.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut after = stat.rsplit_once(')')?.1.split_whitespace();
        let state = after.next()?.chars().next()?;
        let parent = after.next()?.parse().ok()?;
        Some(Self {
            pid,
            parent,
            command_line: line.join(" ").trim_end().to_owned(),
            state,
        })
    }

    /// What the process's descriptors are, by number.
    #[must_use]
    pub fn descriptors(pid: i32) -> Vec<(String, PathBuf)> {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let number = entry.file_name().to_string_lossy().into_owned();
                Some((number, fs::read_link(entry.path()).ok()?))
            })
            .collect()
    }

    /// Whether the process has to do with the folder: names it, works in it, or has a file of it open.
    #[must_use]
    pub fn uses(&self, folder: &Path) -> bool {
        let inside = |link: &str| {
            fs::read_link(format!("/proc/{}/{link}", self.pid))
                .is_ok_and(|target| target.starts_with(folder))
        };
        folder
            .to_str()
            .is_some_and(|folder| self.command_line.contains(folder))
            || inside("cwd")
            || inside("root")
            || Self::descriptors(self.pid)
                .iter()
                .any(|(_, target)| target.starts_with(folder))
    }
}

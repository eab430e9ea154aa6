//! The daemon's process.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Node, lock};
use crate::environment;
use crate::process::{Child, command};
use crate::wait::{LIMIT, wait_for};

/// `isopod serve`. Dropping it sends SIGKILL.
#[derive(Debug)]
pub(super) struct Daemon {
    process: Child,
}

impl Daemon {
    /// Starts it; its log is appended to `log`.
    pub(super) fn start(config: &Path, log: &Path) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let process = command(environment::binary("isopod")?)
            .arg("--config")
            .arg(config)
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the daemon")?;
        Ok(Self {
            process: Child::new(process),
        })
    }

    pub(super) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// SIGTERM.
    pub(super) fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(LIMIT)?;
        ensure!(
            status.success(),
            "the daemon ended with {status} after SIGTERM"
        );
        Ok(())
    }
}

impl Node {
    /// Waits until the daemon answers `Version`.
    pub(super) fn wait_until_ready(&self) -> Result<()> {
        let answered = wait_for("the daemon to answer", LIMIT, || {
            if let Some(Ok(Some(status))) =
                lock(&self.daemon).as_mut().map(|it| it.process.exited())
            {
                return Some(Err(status));
            }
            self.cri().version().ok().map(Ok)
        })?;
        match answered {
            Ok(_) => Ok(()),
            Err(status) => bail!("the daemon ended with {status}"),
        }
    }
}

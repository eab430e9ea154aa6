//! A program on a terminal of its own.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use nix::pty::openpty;
use rustix::termios::{Winsize, tcsetwinsize};

use super::{LIMIT, text};
use crate::process::Child;
use crate::wait::wait_for;

/// A running program, its terminal and what it said.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    main: File,
    said: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts a program on a terminal of this size, as the leader of its session: only so does it
    /// hear of a new size. Its standard error is kept with what appears.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &Command, columns: u16, rows: u16) -> Result<Self> {
        let pty = openpty(None, None)?;
        let (main, side): (OwnedFd, OwnedFd) = (pty.master, pty.slave);
        tcsetwinsize(&side, size(columns, rows))?;
        let mut child = crate::process::command("setsid")
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(side.try_clone()?)
            .stdout(side)
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("it is piped")?;
        let said = Arc::default();
        collect(File::from(main.try_clone()?), &said)?;
        collect(stderr, &said)?;
        Ok(Self {
            child: Child::new(child),
            main: main.into(),
            said,
        })
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn type_in(&mut self, keys: &str) -> Result<()> {
        Ok(self.main.write_all(keys.as_bytes())?)
    }

    /// Changes the terminal's size.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        Ok(tcsetwinsize(&self.main, size(columns, rows))?)
    }

    /// Waits until this was said.
    ///
    /// # Errors
    /// It was not, within the limit.
    pub fn wait_said(&self, wanted: &str) -> Result<()> {
        wait_said(&self.said, wanted)
    }

    /// Waits for the program to end.
    ///
    /// # Errors
    /// It does not, within the limit.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        wait_for("the program to end", LIMIT, || {
            self.child.exited().transpose()
        })?
        .context("waiting for the program")
    }
}

fn size(ws_col: u16, ws_row: u16) -> Winsize {
    Winsize {
        ws_col,
        ws_row,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Gathers what comes out of a pipe until it ends.
pub(super) fn collect(
    mut pipe: impl std::io::Read + Send + 'static,
    said: &Arc<Mutex<String>>,
) -> Result<()> {
    let said = Arc::clone(said);
    thread::Builder::new().spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&text(&buffer[..count]));
        }
    })?;
    Ok(())
}

/// Waits until this was said.
pub(super) fn wait_said(said: &Mutex<String>, wanted: &str) -> Result<()> {
    let so_far = || said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let found = wait_for(wanted, LIMIT, || so_far().contains(wanted).then_some(()));
    found.with_context(|| format!("{:?}", so_far()))
}

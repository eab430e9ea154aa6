//! The file that a log goes to, and can be changed under the writer.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// First pause after a write that failed; it doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest pause before a write is tried again.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The sink was closed; what was not written is given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// Where log lines go. One thread writes; any thread may reopen or close.
#[derive(Debug)]
pub(super) struct Sink {
    target: Mutex<Target>,
    changed: Condvar,
}

#[derive(Debug)]
struct Target {
    /// `None` discards.
    file: Option<File>,
    /// Counts the files that there have been.
    generation: u64,
    closed: bool,
}

impl Sink {
    /// A sink that appends to `file`, or discards.
    ///
    /// # Errors
    ///
    /// When the file cannot be set to append.
    pub(super) fn new(file: Option<File>) -> std::io::Result<Self> {
        if let Some(file) = &file {
            append_only(file)?;
        }
        Ok(Self {
            target: Mutex::new(Target {
                file,
                generation: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        })
    }

    /// Writes whole lines. A write that fails (a full disk) is tried again until it succeeds, the
    /// file is changed or the sink is closed; the caller waits meanwhile, and so does the container
    /// once the buffers between them are full. In a new file the line begins anew.
    pub(super) fn write(&self, lines: &[u8]) -> Result<(), Closed> {
        let mut written = 0;
        let mut pause = RETRY_PAUSE_MIN;
        let mut target = self.lock();
        let mut generation = target.generation;
        while written < lines.len() {
            if target.closed {
                return Err(Closed);
            }
            if target.generation != generation {
                generation = target.generation;
                pause = RETRY_PAUSE_MIN;
                written = line_start(lines, written);
            }
            let Some(mut file) = target.file.as_ref() else {
                return Ok(());
            };
            let error = match file.write(&lines[written..]) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(len) => {
                    written += len;
                    pause = RETRY_PAUSE_MIN;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if pause == RETRY_PAUSE_MIN {
                tracing::warn!(%error, "the container log cannot be written, its container waits");
            }
            target = self
                .changed
                .wait_timeout(target, pause)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
        Ok(())
    }

    /// Goes on in another file. Waits for a write that is under way.
    ///
    /// # Errors
    ///
    /// When the file cannot be set to append; the old one stays.
    pub(super) fn reopen(&self, file: File) -> std::io::Result<()> {
        append_only(&file)?;
        let mut target = self.lock();
        target.file = Some(file);
        target.generation += 1;
        self.changed.notify_all();
        Ok(())
    }

    /// Ends all writing and closes the file. Idempotent.
    pub(super) fn close(&self) {
        let mut target = self.lock();
        target.closed = true;
        target.file = None;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Target> {
        // A poisoned target is whole: nothing panics between its changes.
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The beginning of the line that `position` is in.
fn line_start(lines: &[u8], position: usize) -> usize {
    lines[..position]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1)
}

fn append_only(file: &File) -> std::io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_APPEND) {
        fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_APPEND))?;
    }
    Ok(())
}

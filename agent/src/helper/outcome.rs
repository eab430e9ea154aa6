//! Whether a process was really executed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::protocol::Refusal;

/// Longest refusal, in bytes.
const REFUSAL_MAX: u64 = 64 * 1024;

/// The agent's end of an outcome pipe.
#[derive(Debug)]
pub(crate) struct Outcome(Receiver);

/// The process's end. It closes on exec.
#[derive(Debug)]
pub(crate) struct OutcomeEnd(OwnedFd);

impl Outcome {
    /// Makes the pipe.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub(crate) fn pipe() -> io::Result<(Self, OutcomeEnd)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        Ok((Self(Receiver::from_owned_fd(read)?), OutcomeEnd(write)))
    }

    /// Waits until the process was executed, has refused, or is gone. None in the first and the
    /// last case; which of the two, its exit tells.
    pub(crate) async fn refusal(self) -> Option<Refusal> {
        let mut text = Vec::new();
        // An error leaves what was read, which then is no refusal.
        let _ = self.0.take(REFUSAL_MAX).read_to_end(&mut text).await;
        serde_json::from_slice(&text).ok()
    }
}

impl OutcomeEnd {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The descriptor, to send it to a helper.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Tells why there will be no exec.
    pub(super) fn refuse(&self, refusal: &Refusal) -> io::Result<()> {
        let text = serde_json::to_vec(refusal)?;
        File::from(self.0.try_clone()?).write_all(&text)
    }
}

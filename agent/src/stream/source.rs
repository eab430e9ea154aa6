//! Where a process's output is read from.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use isopod_proto::stream::Kind;
use rustix::io::{Errno, ioctl_fionread, read};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::process::Terminal;

/// A pipe's read end or a terminal's master.
#[derive(Debug)]
pub(crate) struct Source {
    /// [`Kind::Stdout`] or [`Kind::Stderr`].
    pub(crate) kind: Kind,
    from: From,
    /// Bytes that are still to be read, once the source is being drained.
    left: Option<u64>,
}

#[derive(Debug)]
enum From {
    Pipe(AsyncFd<OwnedFd>),
    Terminal(Arc<Terminal>),
}

impl Source {
    /// The read end of a standard output.
    pub(crate) fn stdout(pipe: AsyncFd<OwnedFd>) -> Self {
        Self {
            kind: Kind::Stdout,
            from: From::Pipe(pipe),
            left: None,
        }
    }

    /// The read end of a standard error.
    pub(crate) fn stderr(pipe: AsyncFd<OwnedFd>) -> Self {
        Self {
            kind: Kind::Stderr,
            from: From::Pipe(pipe),
            left: None,
        }
    }

    /// A terminal's master side.
    pub(crate) fn terminal(terminal: Arc<Terminal>) -> Self {
        Self {
            kind: Kind::Stdout,
            from: From::Terminal(terminal),
            left: None,
        }
    }

    fn fd(&self) -> &AsyncFd<OwnedFd> {
        match &self.from {
            From::Pipe(fd) => fd,
            From::Terminal(terminal) => terminal.master(),
        }
    }

    /// From now on reads what is there and no more. Without this, a process that outlives the one
    /// whose output this is, and holds on to its pipe, would keep the stream open for ever.
    pub(crate) fn drain(&mut self) {
        self.left = Some(ioctl_fionread(self.fd().get_ref().as_fd()).unwrap_or(0));
    }

    /// Whether everything that was to be drained has been read.
    pub(crate) fn drained(&self) -> bool {
        self.left == Some(0)
    }

    /// Waits until there is something to read, or the end.
    pub(crate) async fn ready(&self) {
        // Fails only while the runtime ends.
        let _ = self.fd().readable().await;
    }

    /// Reads into `buffer`: 0 at the end of the output, none when there is nothing yet.
    ///
    /// # Errors
    ///
    /// What read(2) says.
    pub(crate) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let limit = match self.left {
            Some(left) => usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len()),
            None => buffer.len(),
        };
        let result = self.fd().try_io(Interest::READABLE, |fd| {
            loop {
                match read(fd, &mut buffer[..limit]) {
                    Err(Errno::INTR) => {}
                    result => return Ok(result?),
                }
            }
        });
        match result {
            Ok(count) => {
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(count as u64);
                }
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The last user of a terminal closed it.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }
}

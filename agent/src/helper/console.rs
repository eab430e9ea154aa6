//! Where a terminal's master side arrives. On the agent's runtime.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixListener;

use super::protocol::receive;

/// The master side was sent before the helper reported; it only has to be picked up.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    /// The socket.
    #[error("console socket {path}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing came.
    #[error("the process's terminal did not arrive")]
    Missing,
}

/// A listening socket, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Console {
    fn drop(&mut self) {
        // Nothing depends on it; the folder goes away with the agent.
        let _ = fs::remove_file(&self.path);
    }
}

impl Console {
    /// Listens on a new socket in `folder`.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made.
    pub(crate) fn listen(folder: &Path) -> Result<Self, ConsoleError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = folder.join(format!("{}.sock", NUMBER.fetch_add(1, Ordering::Relaxed)));
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(ConsoleError::Socket { path, source }),
        }
    }

    /// The socket's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master side of the terminal.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Missing`] when it does not come.
    pub(crate) async fn master(self) -> Result<OwnedFd, ConsoleError> {
        match tokio::time::timeout(TIMEOUT, self.take()).await {
            Ok(Ok(Some(fd))) => Ok(fd),
            Ok(Ok(None)) | Err(_) => Err(ConsoleError::Missing),
            Ok(Err(source)) => Err(ConsoleError::Socket {
                path: self.path.clone(),
                source,
            }),
        }
    }

    async fn take(&self) -> io::Result<Option<OwnedFd>> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            let mut name = [0; 256];
            match stream.try_io(Interest::READABLE, || receive(stream.as_fd(), &mut name)) {
                Ok((0, _)) => return Ok(None),
                Ok((_, fds)) if fds.is_empty() => {}
                Ok((_, fds)) => return Ok(fds.into_iter().next()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

//! Container logs: what the containers of this sandbox print, written to files in the CRI log
//! format, with or without a daemon.
//!
//! ```text
//! agent ── vsock ──> muxer ── socket pair ──> thread "log-<id>" ── write(2) ──> log file
//! ```
//!
//! [`Logs`] belongs to the control service, whose thread calls it; nothing in it blocks that
//! thread. Each open log has a thread of its own, because a write to a full or slow disk may block
//! for as long as it likes: it then stops to read, the buffers on the way fill up to their limits,
//! and the container waits in its own write. No byte is dropped.
//!
//! ```text
//!          open                     End, or connection lost, all written
//!  absent ──────> opening ──> open ─────────────────────────────────────> ended
//!     ^              │          │  ^ reopen                                 │
//!     │              │          └──┘                                        │
//!     └──────────────┴───────────── close ──────────────────────────────────┘
//! ```

mod lines;
mod sink;
mod stream;
mod timestamp;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use self::sink::Sink;
pub(crate) use self::stream::StreamError;
use self::writer::Progress;
use crate::virtio::vsock::VsockHandle;

/// Most logs at a time: each has a thread.
const LOGS_MAX: usize = 256;

/// Longest container id, in bytes.
const CONTAINER_ID_MAX: usize = 128;

/// A request about a log failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The container's log is open already.
    #[error("the log of container {0} is open already")]
    Exists(String),
    /// There is no such log.
    #[error("container {0} has no open log")]
    Unknown(String),
    /// Not an id: 1 to 128 characters of `[A-Za-z0-9._-]`.
    #[error("not a container id: {0:?}")]
    InvalidId(String),
    /// [`LOGS_MAX`] logs are open.
    #[error("more than {LOGS_MAX} logs are open")]
    TooMany,
    /// The log was closed while it was being opened.
    #[error("the log of container {0} was closed while it was being opened")]
    Closed(String),
    /// The agent's stream could not be opened.
    #[error("opening the output of container {container_id}")]
    Stream {
        /// Whose output.
        container_id: String,
        /// Why not.
        #[source]
        source: StreamError,
    },
    /// The file cannot be appended to.
    #[error("the log file of container {container_id}")]
    File {
        /// Whose log.
        container_id: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The log's thread could not be started.
    #[error("starting the log thread of container {container_id}")]
    Thread {
        /// Whose log.
        container_id: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// How far a log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogProgress {
    /// The container's output has ended and all of it is written.
    pub(crate) ended: bool,
    /// Bytes of output written so far.
    pub(crate) bytes: u64,
}

/// The logs of this sandbox's containers.
#[derive(Debug)]
pub(crate) struct Logs {
    vsock: VsockHandle,
    slots: Mutex<HashMap<String, Slot>>,
}

#[derive(Debug)]
enum Slot {
    /// Belongs to the `open` call with this sink.
    Opening(Arc<Sink>),
    Open(Log),
}

#[derive(Debug)]
struct Log {
    sink: Arc<Sink>,
    progress: Arc<Progress>,
    /// Shut down to wake the thread from its read.
    stream: UnixStream,
}

impl Logs {
    /// No logs; the agent will be reached through `vsock`.
    pub(crate) fn new(vsock: VsockHandle) -> Self {
        Self {
            vsock,
            slots: Mutex::new(HashMap::new()),
        }
    }

    /// Becomes the primary sink of the container's output and writes it to `file`, or discards it.
    ///
    /// # Errors
    ///
    /// [`LogError`]; nothing is open then.
    pub(crate) async fn open(
        &self,
        container_id: &str,
        file: Option<File>,
    ) -> Result<(), LogError> {
        if !is_container_id(container_id) {
            return Err(LogError::InvalidId(
                container_id.chars().take(CONTAINER_ID_MAX).collect(),
            ));
        }
        let id = || container_id.to_owned();
        let sink = Sink::new(file).map_err(|source| LogError::File {
            container_id: id(),
            source,
        })?;
        let claim = self.claim(container_id, Arc::new(sink))?;
        let vsock = self.vsock.clone();
        let opened = spawn_blocking({
            let container_id = id();
            move || stream::open(&vsock, &container_id)
        })
        .await
        .unwrap_or(Err(StreamError::Lost));
        let stream = opened.map_err(|source| LogError::Stream {
            container_id: id(),
            source,
        })?;
        claim.fill(stream)
    }

    /// Goes on in `file`, at a line's beginning. Answers when nothing more will be written to the
    /// old one.
    ///
    /// # Errors
    ///
    /// [`LogError::Unknown`] without a log, [`LogError::File`] when the file cannot be appended to.
    pub(crate) async fn reopen(&self, container_id: &str, file: File) -> Result<(), LogError> {
        let sink = match self.slots().get(container_id) {
            Some(Slot::Opening(sink) | Slot::Open(Log { sink, .. })) => Arc::clone(sink),
            None => return Err(LogError::Unknown(container_id.to_owned())),
        };
        spawn_blocking(move || sink.reopen(file))
            .await
            .unwrap_or_else(|_stopped| Err(std::io::ErrorKind::Interrupted.into()))
            .map_err(|source| LogError::File {
                container_id: container_id.to_owned(),
                source,
            })
    }

    /// Waits until the output has ended and is written, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// [`LogError::Unknown`] without a log.
    pub(crate) async fn wait(
        &self,
        container_id: &str,
        timeout: Duration,
    ) -> Result<LogProgress, LogError> {
        let progress = match self.slots().get(container_id) {
            Some(Slot::Open(log)) => Arc::clone(&log.progress),
            _ => return Err(LogError::Unknown(container_id.to_owned())),
        };
        Ok(progress.wait(Instant::now() + timeout).await)
    }

    /// Ends the log: output that has not arrived is lost, the file is closed. Idempotent.
    pub(crate) async fn close(&self, container_id: &str) {
        let removed = self.slots().remove(container_id);
        let sink = match removed {
            Some(Slot::Opening(sink)) => sink,
            Some(Slot::Open(log)) => {
                // Not connected any more: the thread knows by itself.
                let _ended = log.stream.shutdown(Shutdown::Both);
                log.sink
            }
            None => return,
        };
        // Fails only when the runtime stops, and the process with it.
        let _stopped = spawn_blocking(move || sink.close()).await;
    }

    /// Waits until every log has ended, for `timeout` at most: the guest is gone, and what it
    /// printed is still on its way to the files. True when all is written.
    pub(crate) async fn finish(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let all: Vec<_> = self
            .slots()
            .values()
            .filter_map(|slot| match slot {
                Slot::Opening(_) => None,
                Slot::Open(log) => Some(Arc::clone(&log.progress)),
            })
            .collect();
        let mut ended = true;
        for progress in all {
            ended &= progress.wait(deadline).await.ended;
        }
        ended
    }

    fn claim(&self, container_id: &str, sink: Arc<Sink>) -> Result<Claim<'_>, LogError> {
        let mut slots = self.slots();
        if slots.contains_key(container_id) {
            return Err(LogError::Exists(container_id.to_owned()));
        }
        if slots.len() >= LOGS_MAX {
            return Err(LogError::TooMany);
        }
        slots.insert(container_id.to_owned(), Slot::Opening(Arc::clone(&sink)));
        Ok(Claim {
            logs: self,
            container_id: container_id.to_owned(),
            sink,
        })
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        // A poisoned map is whole: nothing panics between its changes.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    async fn wait(&self, deadline: Instant) -> LogProgress {
        let mut ended = self.ended.subscribe();
        // The sender is in `self`: it outlives the wait, which can only end or time out.
        let ended = timeout_at(deadline, ended.wait_for(|ended| *ended))
            .await
            .is_ok();
        LogProgress {
            ended,
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// A slot that is being filled; frees it when it is not.
struct Claim<'a> {
    logs: &'a Logs,
    container_id: String,
    sink: Arc<Sink>,
}

impl Claim<'_> {
    fn fill(self, stream: UnixStream) -> Result<(), LogError> {
        let mut slots = self.logs.slots();
        match slots.get(&self.container_id) {
            Some(Slot::Opening(sink)) if Arc::ptr_eq(sink, &self.sink) => {}
            _ => return Err(LogError::Closed(self.container_id.clone())),
        }
        let progress = Arc::new(Progress {
            bytes: AtomicU64::new(0),
            ended: watch::Sender::new(false),
        });
        let thread = stream.try_clone().and_then(|stream| {
            writer::start(
                &self.container_id,
                stream,
                Arc::clone(&self.sink),
                Arc::clone(&progress),
            )
        });
        if let Err(source) = thread {
            drop(slots);
            return Err(LogError::Thread {
                container_id: self.container_id.clone(),
                source,
            });
        }
        let log = Log {
            sink: Arc::clone(&self.sink),
            progress,
            stream,
        };
        slots.insert(self.container_id.clone(), Slot::Open(log));
        Ok(())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut slots = self.logs.slots();
        if let Some(Slot::Opening(sink)) = slots.get(&self.container_id)
            && Arc::ptr_eq(sink, &self.sink)
        {
            slots.remove(&self.container_id);
        }
    }
}

fn is_container_id(id: &str) -> bool {
    (1..=CONTAINER_ID_MAX).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

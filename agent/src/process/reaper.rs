//! Collects every exit.
//!
//! The agent is the parent of its helpers, and through reparenting (as PID 1, or as a subreaper) of
//! each container's init, of every exec and of whatever those leave behind. `SIGCHLD` is the only
//! source; nothing polls. A process is watched before its parent, the helper, ends, so its exit
//! cannot be collected before somebody asks for it (see [`crate::helper`]).

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Added to a signal's number, this is the exit code of a process that it killed.
const SIGNAL_EXIT_BASE: i32 = 128;

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Death {
    /// 0 to 255; 128 plus the number for one that a signal killed.
    pub(crate) code: i32,
    /// When the agent collected it.
    pub(crate) at: SystemTime,
}

/// Who waits for which process.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    watched: Mutex<HashMap<Pid, oneshot::Sender<Death>>>,
}

impl Reaper {
    /// Starts to collect, on a task of the current runtime.
    ///
    /// # Errors
    ///
    /// When the signal handler cannot be installed.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let mut signals = signal(SignalKind::child())?;
        let reaper = Arc::new(Self::default());
        let task = Arc::clone(&reaper);
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                task.collect();
            }
        });
        Ok(reaper)
    }

    /// The exit of `pid`, a child that has not been collected yet.
    pub(crate) fn watch(&self, pid: Pid) -> oneshot::Receiver<Death> {
        let (sender, receiver) = oneshot::channel();
        self.watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, sender);
        receiver
    }

    /// Several children may end for one signal: go on until there is none.
    fn collect(&self) {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => (Pid::from_raw(pid.as_raw_pid()), status),
                Ok(None) | Err(Errno::CHILD) => return,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot collect exited processes");
                    return;
                }
            };
            let Some(code) = exit_code(status) else {
                continue;
            };
            let watcher = self
                .watched
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&pid);
            if let Some(watcher) = watcher {
                // Nobody waits any more for a helper that timed out.
                let _ = watcher.send(Death {
                    code,
                    at: SystemTime::now(),
                });
            }
        }
    }
}

/// None for a process that was stopped or continued, and so has not ended.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| {
        status
            .terminating_signal()
            .map(|signal| SIGNAL_EXIT_BASE + signal)
    })
}

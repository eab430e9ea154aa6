//! Who runs in a container, and who has exited.
//!
//! A [`Process`] is a container's init or one of its execs. It is made when the helper that started
//! it reports its pid, and then followed by one task until the [`reaper`] tells of its end:
//!
//! ```text
//!            SIGCHLD              out-of-memory and exit code noted
//!  running ──────────> collected ──────────────────────────────────> exited
//!                          │
//!                          └─ an init in a shared pid namespace: the rest of its cgroup is killed
//! ```
//!
//! Everything here is on the agent's one runtime thread.

mod io;
mod reaper;
mod signal;

use std::sync::Arc;

use nix::unistd::Pid;
use tokio::sync::{oneshot, watch};

pub(crate) use io::{IoError, Stdio, Terminal};
pub(crate) use reaper::{Death, Reaper};
pub(crate) use signal::{Signal, SignalError};

use crate::container::Cgroup;
use crate::stream::{Input, Output};

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    /// Exit code and time.
    pub(crate) death: Death,
    /// The out-of-memory killer ended a process of its container.
    pub(crate) oom_killed: bool,
}

/// A container's init or an exec.
#[derive(Debug)]
pub(crate) struct Process {
    /// As the agent sees it.
    pub(crate) pid: Pid,
    /// The cgroup of this process and its descendants.
    pub(crate) cgroup: Cgroup,
    /// Standard output and error, or the terminal.
    pub(crate) output: Output,
    /// Standard input; none when it was not asked for.
    pub(crate) input: Option<Arc<Input>>,
    /// Its terminal, when it has one.
    pub(crate) terminal: Option<Arc<Terminal>>,
    exit: watch::Receiver<Option<Exit>>,
}

/// What a process's end leads to.
#[derive(Debug)]
pub(crate) struct Follow {
    /// From [`Reaper::watch`].
    pub(crate) death: oneshot::Receiver<Death>,
    /// The container's cgroup: asked for out-of-memory kills.
    pub(crate) container: Cgroup,
    /// Kill the rest of the container: its init has no pid namespace whose end would do so.
    pub(crate) kill_rest: bool,
}

impl Process {
    /// Takes up a process that runs, and follows it.
    pub(crate) fn adopt(pid: Pid, cgroup: Cgroup, stdio: Stdio, follow: Follow) -> Arc<Self> {
        let (sender, exit) = watch::channel(None);
        let output = Output::start(stdio.output, exit.clone());
        tokio::spawn(follow.run(pid, sender));
        Arc::new(Self {
            pid,
            cgroup,
            output,
            input: stdio.input.map(Arc::new),
            terminal: stdio.terminal,
            exit,
        })
    }

    /// How it ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub(crate) async fn exited(&self) -> Option<Exit> {
        let mut exit = self.exit.clone();
        // An error says that the following task is gone, which happens only when the agent ends.
        exit.wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|exit| *exit)
    }
}

impl Follow {
    async fn run(self, pid: Pid, exit: watch::Sender<Option<Exit>>) {
        let Ok(death) = self.death.await else { return };
        if self.kill_rest
            && let Err(error) = self.container.kill()
        {
            tracing::warn!(%pid, error = crate::service::chain(&error), "rest of a container not killed");
        }
        exit.send_replace(Some(Exit {
            death,
            oom_killed: self.container.oom_killed(),
        }));
    }
}

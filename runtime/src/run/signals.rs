//! The signals that end a run.

use nix::sys::signal::Signal;
use tokio::signal::unix::{Signal as Arrivals, SignalKind, signal};

use super::error::RunError;

/// Signals that people and service managers end commands with.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Arrivals,
    terminate: Arrivals,
    hang_up: Arrivals,
    quit: Arrivals,
}

impl Signals {
    /// Catches them from now on.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn catch() -> Result<Self, RunError> {
        let catch = |kind| {
            signal(kind).map_err(|source| RunError::System {
                action: "catching signals",
                source,
            })
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hang_up: catch(SignalKind::hangup())?,
            quit: catch(SignalKind::quit())?,
        })
    }

    /// The next one. Loses none when dropped.
    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hang_up.recv() => Signal::SIGHUP,
            _ = self.quit.recv() => Signal::SIGQUIT,
        }
    }
}

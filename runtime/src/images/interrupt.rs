//! Ctrl-C, and other requests to end: a command that makes files takes them away first.

use tokio::signal::unix::{SignalKind, signal};

use super::ImagesError;

/// Does `work`, which is dropped as soon as a signal asks the process to end.
///
/// # Errors
/// Those of `work`; [`ImagesError::Interrupted`].
pub(super) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, ImagesError>>,
) -> Result<T, ImagesError> {
    let listen = |kind| signal(kind).map_err(ImagesError::Signals);
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => Err(ImagesError::Interrupted),
        _ = terminate.recv() => Err(ImagesError::Interrupted),
        _ = hangup.recv() => Err(ImagesError::Interrupted),
    }
}

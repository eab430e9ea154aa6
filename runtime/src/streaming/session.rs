//! What every session has, whatever it speaks.

use std::time::Duration;

use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;

use crate::vm::{Output, ProcessOutput, StreamError};

/// How long a client may take to hang up after everything was said: a slow one still has output to
/// read before it.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a client is told when its stream is closed because of [`Session::idle`].
pub(super) const IDLE: &str = "nothing moved for the idle time";

/// What a client is told when its stream is closed because of [`Session::stop`].
pub(super) const STOPPED: &str = "the daemon stops; the container does not";

/// One client's session.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// How long nothing may move.
    pub(super) idle: Duration,
    /// The daemon stops.
    pub(super) stop: CancellationToken,
}

/// Output as a stream whose `next` loses nothing when it is dropped.
pub(super) fn pieces(output: ProcessOutput) -> impl Stream<Item = Result<Output, StreamError>> {
    stream::try_unfold(output, |mut output| async move {
        Ok(output.next().await?.map(|piece| (piece, output)))
    })
}

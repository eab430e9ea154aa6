//! What every call has in common: a task, a span, a log line and an answer.

use std::future::Future;
use std::time::Instant;

use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Response, Status};
use tracing::{Instrument, Span};

use super::error::CriError;

/// Runs a call in a task of its own, to its end even when the client goes away: nothing is left in
/// the middle. Logged here, and nowhere else.
pub(super) async fn run<T: Send + 'static>(
    span: Span,
    call: impl Future<Output = Result<T, CriError>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let logged = async move {
        let begun = Instant::now();
        let result = call.await;
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &result {
            Ok(_) => tracing::debug!(elapsed_ms, "done"),
            // Asking is allowed.
            Err(error) if error.is_not_found() => tracing::debug!(elapsed_ms, %error, "not found"),
            Err(error) => {
                tracing::error!(elapsed_ms, error = crate::chain::chain(error), "failed");
            }
        }
        result
    };
    let result = tokio::spawn(logged.instrument(span)).await;
    Ok(Response::new(result.map_err(CriError::from)??))
}

/// A token that is cancelled when the client goes away, for calls that then undo what they did; the
/// guard lives in the client's half of the call.
pub(super) fn cancelled_with_client() -> (CancellationToken, DropGuard) {
    let token = CancellationToken::new();
    (token.clone(), token.drop_guard())
}

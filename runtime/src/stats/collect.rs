//! Asks guests.

use std::sync::Arc;

use futures_util::{StreamExt, stream};

use crate::chain::chain;
use crate::clock;
use crate::sandbox::{Sandbox, SandboxError};
use crate::vm::{Ask, GuestStats};

/// Most guests that are asked at the same time.
const AT_ONCE: usize = 32;

/// What a guest said.
#[derive(Debug)]
pub(crate) struct Sample {
    /// When, by the host's clock, nanoseconds since the epoch.
    pub(crate) at_ns: i64,
    /// What.
    pub(crate) guest: GuestStats,
}

/// Asks one guest about all that runs in it, or about one container.
///
/// # Errors
///
/// When the sandbox is not ready, or its guest does not answer in time.
pub(crate) async fn of_sandbox(sandbox: &Sandbox, ask: Ask<'_>) -> Result<Sample, SandboxError> {
    let guest = sandbox.running_vm()?.stats(ask).await?;
    Ok(Sample {
        at_ns: clock::now_ns(),
        guest,
    })
}

/// Asks many guests, in no order. One that cannot say is left out: it is ending, or hangs, and neither
/// keeps the others from being told of.
pub(crate) async fn of_sandboxes<T>(
    asked: Vec<(Arc<Sandbox>, T)>,
    ask: Ask<'_>,
) -> Vec<(Arc<Sandbox>, T, Sample)> {
    stream::iter(asked)
        .map(async |(sandbox, what)| {
            let sample = of_sandbox(&sandbox, ask).await;
            (sandbox, what, sample)
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |(sandbox, what, sample)| match sample {
            Ok(sample) => Some((sandbox, what, sample)),
            Err(error) => {
                let error = chain(&error);
                tracing::debug!(sandbox_id = %sandbox.id, error, "left out of the statistics");
                None
            }
        })
        .collect()
        .await
}

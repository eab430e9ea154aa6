use std::time::Duration;

use isopod_proto::vmm::{WaitMemoryRequest, WaitMemoryResponse};
use tokio::time::Instant;

use super::{Control, ControlError};
use crate::machine::layout::MIB;
use crate::virtio::mem::MemHandle;

/// How long it takes a driver to unplug blocks again that its kernel has no use for: the memory that
/// describes them is wanting.
const SETTLE: Duration = Duration::from_millis(100);

/// How long a driver may make no progress before it is asked again. What it cannot plug or unplug now,
/// it tries again by itself after 50 seconds, or never (Linux `virtio_mem_run_wq`); often it could a
/// moment later. Longer than it takes to find out about one block: a driver that is asked again begins
/// anew.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Waits until the guest has the memory that it is asked to have, or gets no nearer to it.
pub(super) async fn wait_memory(
    control: &Control,
    request: WaitMemoryRequest,
) -> Result<WaitMemoryResponse, ControlError> {
    let mut response = WaitMemoryResponse::new();
    let growth = control.with_running(|running| Ok(running.machine.growth().cloned()))?;
    let Some(growth) = growth else {
        return Ok(response);
    };
    let patience = Duration::from_millis(request.patience_ms.into());
    let mut progress = growth.progress();
    let mut nearest = u64::MAX;
    let mut deadline = Instant::now();
    loop {
        let left = growth.requested().abs_diff(growth.plugged());
        if left < nearest {
            nearest = left;
            deadline = Instant::now() + patience;
        }
        // Whatever else the driver does: it may plug and unplug the same block all the time.
        if Instant::now() >= deadline {
            break;
        }
        let pause = match left {
            0 => SETTLE,
            _ => ASK_AGAIN,
        };
        let until = deadline.min(Instant::now() + pause);
        match tokio::time::timeout_at(until, progress.changed()).await {
            Ok(Ok(())) => {}
            Err(_elapsed) if left > 0 && until < deadline => growth.ask_again(),
            _ => break,
        }
    }
    (_, response.plugged_memory_mib) = sizes(&growth);
    Ok(response)
}

/// What the guest was asked to have, and what it has, in MiB.
pub(super) fn sizes(growth: &MemHandle) -> (u32, u32) {
    let mib = |bytes: u64| u32::try_from(bytes / MIB).unwrap_or(u32::MAX);
    (mib(growth.requested()), mib(growth.plugged()))
}

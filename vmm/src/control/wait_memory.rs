use std::time::Duration;

use isopod_proto::vmm::{WaitMemoryRequest, WaitMemoryResponse};
use tokio::time::Instant;

use super::{Control, ControlError};
use crate::machine::layout::MIB;
use crate::virtio::mem::MemHandle;

/// How long it takes a driver to unplug blocks again that its kernel has no use for: the memory that
/// describes them is wanting.
const SETTLE: Duration = Duration::from_millis(100);

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
        let until = match left {
            0 => deadline.min(Instant::now() + SETTLE),
            _ => deadline,
        };
        let changed = tokio::time::timeout_at(until, progress.changed());
        if !matches!(changed.await, Ok(Ok(()))) {
            break;
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

use isopod_proto::vmm::{ResizeMemoryRequest, ResizeMemoryResponse};

use super::{Control, ControlError};

/// Asks the guest to have more memory beside its RAM, or less.
pub(super) async fn resize_memory(
    control: &Control,
    request: ResizeMemoryRequest,
) -> Result<ResizeMemoryResponse, ControlError> {
    control.with_running(|running| {
        running.machine.resize_memory(request.memory_mib)?;
        Ok(ResizeMemoryResponse::new())
    })
}

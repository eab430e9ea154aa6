use isopod_proto::vmm::{CloseLogRequest, CloseLogResponse};

use super::{Control, ControlError};

/// Ends the container's log and closes its file. Idempotent.
pub(super) async fn close_log(
    control: &Control,
    request: CloseLogRequest,
) -> Result<CloseLogResponse, ControlError> {
    control.logs()?.close(&request.container_id).await;
    Ok(CloseLogResponse::new())
}

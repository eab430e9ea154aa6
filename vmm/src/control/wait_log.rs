use std::time::Duration;

use isopod_proto::vmm::{WaitLogRequest, WaitLogResponse};

use super::{Control, ControlError};

/// Answers when the container's output has ended and is written, or after the timeout.
pub(super) async fn wait_log(
    control: &Control,
    request: WaitLogRequest,
) -> Result<WaitLogResponse, ControlError> {
    let logs = control.logs()?;
    let timeout = Duration::from_millis(request.timeout_ms.into());
    let progress = logs.wait(&request.container_id, timeout).await?;
    let mut response = WaitLogResponse::new();
    response.ended = progress.ended;
    response.bytes = progress.bytes;
    Ok(response)
}

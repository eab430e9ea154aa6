use std::fs::File;

use isopod_proto::vmm::{ReopenLogRequest, ReopenLogResponse};

use super::{Control, ControlError};

/// Goes on in a new file (log rotation).
pub(super) async fn reopen_log(
    control: &Control,
    request: ReopenLogRequest,
) -> Result<ReopenLogResponse, ControlError> {
    let logs = control.logs()?;
    let file = File::from(control.descriptors.take(&request.descriptor)?);
    logs.reopen(&request.container_id, file).await?;
    Ok(ReopenLogResponse::new())
}

//! `ReopenContainerLog`: goes on in a new log file, after the old one was renamed.

use isopod_proto::cri::{ReopenContainerLogRequest, ReopenContainerLogResponse};

use super::Cri;
use super::error::CriError;

pub(super) async fn reopen_container_log(
    cri: &Cri,
    request: ReopenContainerLogRequest,
) -> Result<ReopenContainerLogResponse, CriError> {
    let container = cri.containers.find(&request.container_id)?;
    cri.containers.reopen_log(&container).await?;
    Ok(ReopenContainerLogResponse {})
}

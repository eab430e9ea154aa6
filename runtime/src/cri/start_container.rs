//! `StartContainer`: lets a created container's process run.

use isopod_proto::cri::{StartContainerRequest, StartContainerResponse};

use super::Cri;
use super::error::CriError;

pub(super) async fn start_container(
    cri: &Cri,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, CriError> {
    let container = cri.containers.find(&request.container_id)?;
    cri.containers.start(&container).await?;
    Ok(StartContainerResponse {})
}

//! `UpdateContainerResources`: changes a container's limits while it is there.

use isopod_proto::cri::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};

use super::Cri;
use super::error::CriError;
use crate::field::FieldError;

pub(super) async fn update_container_resources(
    cri: &Cri,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, CriError> {
    FieldError::refuse_if(request.windows.is_some(), "windows")?;
    let container = cri.containers.find(&request.container_id)?;
    if let Some(update) = &request.linux {
        cri.containers.update(&container, update).await?;
    }
    Ok(UpdateContainerResourcesResponse {})
}

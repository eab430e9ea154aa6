//! `CreateContainer`: a root file system and a process that waits to be started.

use isopod_proto::cri::{CreateContainerRequest, CreateContainerResponse};
use tokio_util::sync::CancellationToken;

use super::Cri;
use super::error::CriError;
use crate::field::FieldError;

pub(super) async fn create_container(
    cri: &Cri,
    request: CreateContainerRequest,
    cancel: &CancellationToken,
) -> Result<CreateContainerResponse, CriError> {
    let sandbox = cri.sandboxes.find(&request.pod_sandbox_id)?;
    let config = request
        .config
        .ok_or_else(|| FieldError::new("config", "is missing"))?;
    let id = cri.containers.create(&sandbox, &config, cancel).await?;
    Ok(CreateContainerResponse {
        container_id: id.into(),
    })
}

//! `RemoveContainer`: nothing is left of a container.
//!
//! "If the container is running, the container must be forcibly removed. This call is idempotent,
//! and must not return an error if the container has already been removed."

use isopod_proto::cri::{RemoveContainerRequest, RemoveContainerResponse};

use super::Cri;
use super::error::CriError;

pub(super) async fn remove_container(
    cri: &Cri,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, CriError> {
    match cri
        .containers
        .find(&request.container_id)
        .map_err(CriError::from)
    {
        Ok(container) => cri.containers.remove(&container).await?,
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(RemoveContainerResponse {})
}

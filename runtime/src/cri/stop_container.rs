//! `StopContainer`: asks a container to end, and kills it after the grace period.
//!
//! "This call is idempotent, and must not return an error if the container has already been
//! stopped": so it is for one that was removed since, as in containerd.

use std::time::Duration;

use isopod_proto::cri::{StopContainerRequest, StopContainerResponse};

use super::Cri;
use super::error::CriError;

pub(super) async fn stop_container(
    cri: &Cri,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, CriError> {
    match cri
        .containers
        .find(&request.container_id)
        .map_err(CriError::from)
    {
        Ok(container) => {
            // Seconds; none, or nonsense, means at once.
            let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or_default());
            cri.containers.stop(&container, grace).await?;
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(StopContainerResponse {})
}

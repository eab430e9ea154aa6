//! `UpdatePodSandboxResources`: what a pod may use as a whole.

use isopod_proto::cri::{UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse};

use super::Cri;
use super::error::CriError;

pub(super) async fn update_pod_sandbox_resources(
    cri: &Cri,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<UpdatePodSandboxResourcesResponse, CriError> {
    let sandbox = cri.sandboxes.find(&request.pod_sandbox_id)?;
    if let Some(resources) = &request.resources {
        sandbox.resize(resources).await?;
    }
    Ok(UpdatePodSandboxResourcesResponse {})
}

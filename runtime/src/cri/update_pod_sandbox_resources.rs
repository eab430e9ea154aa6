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
        let overhead = request.overhead.as_ref();
        cri.sandboxes.resize(&sandbox, resources, overhead).await?;
    }
    Ok(UpdatePodSandboxResourcesResponse {})
}

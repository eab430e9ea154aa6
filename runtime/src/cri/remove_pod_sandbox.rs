//! `RemovePodSandbox`: nothing is left of a pod.
//!
//! "If there are any running containers in the sandbox, they must be forcibly terminated and
//! removed. This call is idempotent, and must not return an error if the sandbox has already been
//! removed."

use isopod_proto::cri::{RemovePodSandboxRequest, RemovePodSandboxResponse};

use super::Cri;
use super::error::CriError;
use super::stop_pod_sandbox::stop;

pub(super) async fn remove_pod_sandbox(
    cri: &Cri,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, CriError> {
    let sandbox = match cri
        .sandboxes
        .find(&request.pod_sandbox_id)
        .map_err(CriError::from)
    {
        Ok(sandbox) => sandbox,
        Err(error) if error.is_not_found() => return Ok(RemovePodSandboxResponse {}),
        Err(error) => return Err(error),
    };
    stop(cri, &sandbox).await?;
    for container in cri.containers.of_sandbox(&sandbox.id) {
        cri.containers.remove(&container).await?;
    }
    cri.sandboxes.remove(&sandbox).await?;
    Ok(RemovePodSandboxResponse {})
}

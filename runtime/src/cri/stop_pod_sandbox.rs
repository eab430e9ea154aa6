//! `StopPodSandbox`: ends a pod's containers and its machine.
//!
//! "It is expected that StopPodSandbox is called at least once before RemovePodSandbox; it must not
//! return an error if all relevant resources have already been reclaimed": an unknown sandbox is OK.

use isopod_proto::cri::{StopPodSandboxRequest, StopPodSandboxResponse};

use super::Cri;
use super::error::CriError;
use crate::sandbox::Sandbox;

pub(super) async fn stop_pod_sandbox(
    cri: &Cri,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, CriError> {
    match cri
        .sandboxes
        .find(&request.pod_sandbox_id)
        .map_err(CriError::from)
    {
        Ok(sandbox) => stop(cri, &sandbox).await?,
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(StopPodSandboxResponse {})
}

/// Containers first, so that their exits and last output are kept; then the machine.
pub(super) async fn stop(cri: &Cri, sandbox: &Sandbox) -> Result<(), CriError> {
    let _closed = sandbox.close().await?;
    cri.containers.kill_all(sandbox).await;
    Ok(cri.sandboxes.stop(sandbox).await?)
}

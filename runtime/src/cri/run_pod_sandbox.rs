//! `RunPodSandbox`: a pod's virtual machine, up to an agent that answers.

use isopod_proto::cri::{RunPodSandboxRequest, RunPodSandboxResponse};
use tokio_util::sync::CancellationToken;

use super::error::CriError;
use super::{Cri, handler};
use crate::field::FieldError;
use crate::sandbox::PodConfig;

pub(super) async fn run_pod_sandbox(
    cri: &Cri,
    request: RunPodSandboxRequest,
    cancel: &CancellationToken,
) -> Result<RunPodSandboxResponse, CriError> {
    handler::check(&request.runtime_handler)?;
    let config = request
        .config
        .ok_or_else(|| FieldError::new("config", "is missing"))?;
    let config = PodConfig::check(config, &cri.config.vm, cri.config.cni.enabled)?;
    let id = cri
        .sandboxes
        .run(config, request.runtime_handler, cancel)
        .await?;
    Ok(RunPodSandboxResponse {
        pod_sandbox_id: id.into(),
    })
}

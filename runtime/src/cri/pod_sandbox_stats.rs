//! `PodSandboxStats`: what one ready pod uses, and each of its running containers.

use isopod_proto::cri;
use isopod_proto::cri::{PodSandboxStatsRequest, PodSandboxStatsResponse};

use super::Cri;
use super::container_stats;
use super::error::CriError;
use super::pod_sandbox_status::metadata;
use crate::sandbox::Sandbox;
use crate::stats;

/// A pod whose machine has ended is not ready, as for every call that needs its guest.
pub(super) async fn pod_sandbox_stats(
    cri: &Cri,
    request: &PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, CriError> {
    let sandbox = cri.sandboxes.find(&request.pod_sandbox_id)?;
    let sample = stats::of_sandbox(&sandbox, stats::Ask::All).await?;
    Ok(PodSandboxStatsResponse {
        stats: Some(describe(cri, &sandbox, &sample)),
    })
}

pub(super) fn describe(
    cri: &Cri,
    sandbox: &Sandbox,
    sample: &stats::Sample,
) -> cri::PodSandboxStats {
    let containers = cri
        .containers
        .of_sandbox(&sandbox.id)
        .iter()
        .filter(|container| container_stats::is_running(container))
        .filter_map(|container| container_stats::describe(cri, container, sample))
        .collect();
    stats::sandbox_stats(sandbox, attributes(sandbox), containers, sample)
}

fn attributes(sandbox: &Sandbox) -> cri::PodSandboxAttributes {
    let pod = &sandbox.config;
    cri::PodSandboxAttributes {
        id: sandbox.id.to_string(),
        metadata: Some(metadata(sandbox)),
        labels: pod.labels.clone().into_iter().collect(),
        annotations: pod.annotations.clone().into_iter().collect(),
    }
}

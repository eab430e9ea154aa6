//! `ContainerStats`: what one running container uses.

use std::path::Path;

use isopod_proto::cri;
use isopod_proto::cri::{ContainerStatsRequest, ContainerStatsResponse};

use super::Cri;
use super::container_status::metadata;
use super::error::CriError;
use crate::container::{Container, ContainerError, ContainerState};
use crate::sandbox::SandboxError;
use crate::stats;

/// A container that does not run has nothing to be measured, and that is said rather than nothing.
pub(super) async fn container_stats(
    cri: &Cri,
    request: &ContainerStatsRequest,
) -> Result<ContainerStatsResponse, CriError> {
    let container = cri.containers.find(&request.container_id)?;
    if !is_running(&container) {
        return Err(container.wrong_state("measured").into());
    }
    let sample = match stats::of_sandbox(&container.sandbox, stats::Ask::One(&container.id)).await {
        // Removed meanwhile.
        Err(SandboxError::Vm(error)) if error.is_not_found() => {
            return Err(container.wrong_state("measured").into());
        }
        sample => sample.map_err(ContainerError::from)?,
    };
    Ok(ContainerStatsResponse {
        stats: describe(cri, &container, &sample),
    })
}

pub(super) fn is_running(container: &Container) -> bool {
    matches!(container.state(), ContainerState::Running { .. })
}

pub(super) fn describe(
    cri: &Cri,
    container: &Container,
    sample: &stats::Sample,
) -> Option<cri::ContainerStats> {
    stats::container_stats(container, attributes(container), &scratch(cri), sample)
}

fn attributes(container: &Container) -> cri::ContainerAttributes {
    let config = &container.config;
    cri::ContainerAttributes {
        id: container.id.to_string(),
        metadata: Some(metadata(container)),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
    }
}

/// Where the writable disks are: the kubelet looks at the file system below.
fn scratch(cri: &Cri) -> String {
    let path: &Path = &cri.config.root_dir;
    path.join("sandboxes").to_string_lossy().into_owned()
}

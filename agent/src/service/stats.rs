//! Tells what the sandbox and its containers use.

use std::sync::Arc;
use std::time::Duration;

use isopod_proto::agent::{
    ContainerState, ContainerStats, LayerStats, StatsRequest, StatsResponse,
};
use tokio::time::Instant;

use super::AgentService;
use super::error::AgentError;
use crate::container::{Cgroup, Container};
use crate::stats;

/// How long an answer waits for writable layers that are being counted. What is not ready then is
/// told as it was the time before, or not yet.
const LAYERS_PATIENCE: Duration = Duration::from_millis(200);

impl AgentService {
    /// Takes no container's lock: a verb that takes long keeps nobody from looking. A container that
    /// goes meanwhile tells of itself what is still there.
    pub(super) async fn stats(&self, request: &StatsRequest) -> Result<StatsResponse, AgentError> {
        let containers = match request.container_id.as_str() {
            "" => self.running(),
            id => vec![self.containers.get(id)?],
        };
        let sandbox = Cgroup::new(&self.surroundings.cgroup);
        let groups: Vec<(Cgroup, i32)> = containers.iter().map(|it| group(it)).collect();
        let in_detail = request.open_files;
        let read = tokio::task::spawn_blocking(move || {
            let groups: Vec<_> = groups
                .iter()
                .map(|(group, init)| {
                    let open = in_detail.then(|| stats::open_files(group, *init));
                    (stats::read_cgroup(group), open)
                })
                .collect();
            // Last: what a container has used in between is the sandbox's, too.
            let sandbox = stats::read_cgroup(&sandbox);
            (stats::since_boot_ns(), sandbox, groups, stats::interfaces())
        });
        let (at_ns, sandbox, groups, interfaces) =
            read.await.map_err(|_panic| AgentError::GivenUp)?;
        let layers = layers(&containers).await;
        let containers = containers
            .iter()
            .zip(groups.into_iter().zip(layers))
            .map(
                |(container, ((cgroup, open_files), layer))| ContainerStats {
                    container_id: container.id.to_string(),
                    cgroup: Some(cgroup).into(),
                    open_files: open_files.into(),
                    writable_layer: layer.into(),
                    ..Default::default()
                },
            )
            .collect();
        Ok(StatsResponse {
            at_ns,
            sandbox: Some(sandbox).into(),
            interfaces,
            containers,
            ..Default::default()
        })
    }

    fn running(&self) -> Vec<Arc<Container>> {
        let mut containers = self.containers.all();
        containers.retain(|container| container.state() == ContainerState::CONTAINER_STATE_RUNNING);
        containers
    }
}

/// A container's group, and its first process; 0 while there is none.
fn group(container: &Container) -> (Cgroup, i32) {
    let init = container.created().map(|created| created.init.pid.as_raw());
    (container.cgroup.clone(), init.unwrap_or_default())
}

/// The writable layers, counted anew where the last count is old. They share one deadline.
async fn layers(containers: &[Arc<Container>]) -> Vec<Option<LayerStats>> {
    for container in containers {
        if let Some(upper) = container.upper() {
            container.layer.refresh(upper);
        }
    }
    let deadline = Instant::now() + LAYERS_PATIENCE;
    let mut layers = Vec::with_capacity(containers.len());
    for container in containers {
        layers.push(container.layer.settled(deadline).await);
    }
    layers
}

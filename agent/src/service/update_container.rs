//! Changes a container's limits while it is there.

use isopod_proto::agent::{UpdateContainerRequest, UpdateContainerResponse};
use oci_spec::runtime::LinuxResources;

use super::AgentService;
use super::error::AgentError;
use crate::container::SpecError;

/// Longest description of limits, in bytes of JSON.
const RESOURCES_MAX: usize = 64 * 1024;

impl AgentService {
    /// What the request does not name stays as it is. The kernel takes memory back from a container
    /// whose limit falls below what it uses, or kills in it.
    pub(super) async fn update_container(
        &self,
        request: UpdateContainerRequest,
    ) -> Result<UpdateContainerResponse, AgentError> {
        if request.resources.len() > RESOURCES_MAX {
            return Err(SpecError::Size(request.resources.len()).into());
        }
        let resources: LinuxResources =
            serde_json::from_slice(&request.resources).map_err(SpecError::Json)?;
        let container = self.containers.get(&request.container_id)?;
        let _not_deleted = container.lock.read().await;
        if container.created()?.init.exit().is_some() {
            return Err(AgentError::State {
                id: container.id.clone(),
                is: "exited",
                wanted: "created or running",
            });
        }
        container.cgroup.limit(&resources)?;
        if request.set_oom_score_adj {
            container.cgroup.set_oom_score_adj(request.oom_score_adj)?;
        }
        Ok(UpdateContainerResponse::new())
    }
}

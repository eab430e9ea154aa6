//! For a daemon that was restarted.

use isopod_proto::agent::{ContainerInfo, ListContainersResponse};

use super::AgentService;

impl AgentService {
    /// Every container that was created, in no order.
    pub(super) fn list_containers(&self) -> ListContainersResponse {
        let created =
            |container: &std::sync::Arc<crate::container::Container>| container.created().is_ok();
        let containers = self
            .containers
            .all()
            .into_iter()
            .filter(created)
            .map(|container| ContainerInfo {
                container_id: container.id.to_string(),
                state: container.state().into(),
                ..Default::default()
            })
            .collect();
        ListContainersResponse {
            containers,
            ..Default::default()
        }
    }
}

//! Changes a container's limits while it is there.

use std::sync::Arc;

use isopod_proto::agent::UpdateContainerRequest;
use isopod_proto::cri;

use super::record::ContainerPhase;
use super::{Container, ContainerError, ContainerState, Containers, spec};
use crate::chain::chain;

impl Containers {
    /// Changes what `update` names, and leaves the rest as it is.
    ///
    /// # Errors
    ///
    /// When a limit is impossible, the container has exited, or the guest's kernel does not take it.
    #[tracing::instrument(skip_all, fields(container_id = %container.id))]
    pub(crate) async fn update(
        &self,
        container: &Arc<Container>,
        update: &cri::LinuxContainerResources,
    ) -> Result<(), ContainerError> {
        let updated = container.resources().updated(update);
        // Together, so that what contradicts itself is found.
        spec::limits(&updated.to_cri())?;
        let limits = spec::limits(update)?;
        let oom_score_adj = spec::check_oom_score_adj(update.oom_score_adj)?;
        let admission = container.sandbox.admit().await?;
        let removed = container.verbs.lock().await;
        if removed.0 || matches!(container.state(), ContainerState::Exited(_)) {
            return Err(container.wrong_state("updated"));
        }
        let request = UpdateContainerRequest {
            container_id: container.id.to_string(),
            resources: serde_json::Value::from(limits).to_string().into_bytes(),
            oom_score_adj,
            set_oom_score_adj: oom_score_adj != 0,
            ..Default::default()
        };
        let (user, processors) = (container.id.as_str(), &container.sandbox.processors);
        processors.set(user, updated.processors()).await?;
        if let Err(error) = admission.vm.update_container(&request).await {
            let before = container.resources().processors();
            if let Err(error) = processors.set(user, before).await {
                tracing::warn!(
                    error = chain(&error),
                    "the sandbox's processors have changed"
                );
            }
            return Err(error.into());
        }
        container.set_resources(updated);
        self.save(container, ContainerPhase::from(&container.state()))
            .await
    }
}

//! Changes a container's limits while it is there.

use std::sync::Arc;

use isopod_proto::agent::UpdateContainerRequest;
use isopod_proto::cri;

use super::record::ContainerPhase;
use super::{Container, ContainerError, ContainerState, Containers, Resources, spec};
use crate::chain::chain;
use crate::sandbox::mebibytes;

/// What asks for a larger guest.
const MEMORY_LIMIT: &str = "linux.memory_limit_in_bytes";

impl Containers {
    /// Changes what `update` names, and leaves the rest as it is. The guest grows first when the limits
    /// of its containers need more memory than it has, and shrinks when they need less again.
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
        let turn = container.sandbox.memory.turn().await;
        let has = turn.wanted();
        let wanted = match update.memory_limit_in_bytes {
            0 => has,
            _ => turn.for_containers(self.limits_mib(container, &updated)),
        };
        // More memory is there before it may be used, and goes after it may not.
        let changed = match turn.grow(&admission.vm, wanted, MEMORY_LIMIT).await {
            Ok(()) => admission
                .vm
                .update_container(&request)
                .await
                .map_err(Into::into),
            Err(error) => Err(ContainerError::from(error)),
        };
        if let Err(error) = changed {
            turn.restore(&admission.vm, has).await;
            let before = container.resources().processors();
            if let Err(error) = processors.set(user, before).await {
                tracing::warn!(
                    error = chain(&error),
                    "the sandbox's processors have changed"
                );
            }
            return Err(error);
        }
        turn.settle(&admission.vm, wanted).await;
        container.set_resources(updated);
        if wanted != has {
            container.sandbox.save(&self.records).await?;
        }
        self.save(container, ContainerPhase::from(&container.state()))
            .await
    }

    /// The memory limits of all containers of a sandbox that have not exited, `updated` being those of
    /// one of them. One without a limit makes do with what there is.
    fn limits_mib(&self, container: &Container, updated: &Resources) -> u32 {
        let all = self.of_sandbox(&container.sandbox.id);
        let others = all.iter().filter(|other| {
            other.id != container.id && !matches!(other.state(), ContainerState::Exited(_))
        });
        let limits = others.map(|other| other.resources().memory_limit_in_bytes);
        let limits = limits.chain([updated.memory_limit_in_bytes]);
        mebibytes(limits.fold(0, |sum, limit| sum.saturating_add(limit.max(0))))
    }
}

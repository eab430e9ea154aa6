//! Makes a container disappear.

use std::sync::Arc;
use std::time::Duration;

use super::record::ContainerPhase;
use super::{Container, ContainerConfig, ContainerError, ContainerState, Containers, serial};
use crate::events::EventKind;
use crate::id::ContainerId;
use crate::vm::{Vm, VmError};

impl Containers {
    /// Removes a container, from the guest too. One that runs is killed first, as in containerd.
    /// Idempotent.
    ///
    /// # Errors
    ///
    /// When it cannot be killed, or the guest does not let it go; the container is then still
    /// known, and removing it again may do better.
    #[tracing::instrument(skip_all, fields(container_id = %container.id))]
    pub(crate) async fn remove(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        let mut removed = loop {
            self.stop(container, Duration::ZERO).await?;
            let removed = container.verbs.lock().await;
            // A start may have come in between.
            if !matches!(container.state(), ContainerState::Running { .. }) {
                break removed;
            }
        };
        if removed.0 {
            return Ok(());
        }
        self.save(container, ContainerPhase::Removing).await?;
        if let Ok(vm) = container.sandbox.running_vm() {
            let processors = &container.sandbox.processors;
            processors.forget(container.id.as_str()).await?;
            let removed = async {
                remove_from_guest(&vm, &container.id, Some(&container.config)).await?;
                let user = container.id.as_str();
                container.sandbox.volumes.release(&vm, user).await
            };
            match removed.await {
                // With the machine went everything that was in it.
                Ok(()) | Err(VmError::Ended(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.records
            .forget_container(&container.sandbox.id, &container.id)
            .await?;
        removed.0 = true;
        container.removed.cancel();
        self.table.remove(container.id.as_str());
        container.release_name();
        self.publish(EventKind::Deleted, container);
        Ok(())
    }
}

/// Takes out of the guest whatever it has of a container: processes, log and disks.
///
/// # Errors
///
/// What the guest does not let go of stays behind, with all that comes after it.
pub(super) async fn remove_from_guest(
    vm: &Vm,
    id: &ContainerId,
    config: Option<&ContainerConfig>,
) -> Result<(), VmError> {
    let _alone = vm.clearing_bus().await;
    vm.delete_container(id).await?;
    vm.close_log(id).await?;
    vm.remove_disk(serial(id)).await?;
    for serial in config.into_iter().flat_map(ContainerConfig::disks) {
        vm.remove_disk(serial).await?;
    }
    Ok(())
}

//! Lets a container's process run.

use std::sync::Arc;

use super::record::ContainerPhase;
use super::{Container, ContainerError, ContainerExit, ContainerState, Containers, Signal};
use crate::chain::chain;
use crate::clock;
use crate::events::EventKind;
use crate::vm::{Vm, VmError};

impl Containers {
    /// Starts a created container's process.
    ///
    /// # Errors
    ///
    /// [`ContainerError::State`] unless it is created; [`ContainerError::Start`] when the process
    /// cannot be started, and then the container has exited with code 128 and "`StartError`".
    #[tracing::instrument(skip_all, fields(container_id = %container.id))]
    pub(crate) async fn start(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        let admission = container.sandbox.admit().await?;
        let removed = container.verbs.lock().await;
        if removed.0 || container.state() != ContainerState::Created {
            return Err(container.wrong_state("started"));
        }
        let started_at_ns = clock::now_ns();
        self.save(
            container,
            ContainerPhase::Started {
                at_ns: started_at_ns,
            },
        )
        .await?;
        match admission.vm.start_container(&container.id).await {
            Ok(()) => {
                container
                    .state
                    .send_replace(ContainerState::Running { started_at_ns });
                self.publish(EventKind::Started, container);
                Ok(())
            }
            Err(error) => {
                self.failed(container, &admission.vm, &error).await;
                Err(ContainerError::Start {
                    id: container.id.to_string(),
                    source: error,
                })
            }
        }
    }

    async fn failed(&self, container: &Container, vm: &Vm, error: &VmError) {
        if !matches!(error, VmError::Refused { .. } | VmError::Ended(_)) {
            // It may run after all. If the agent does not hear this either, the container's removal
            // or the sandbox's end kills it.
            let _killed = vm
                .signal(&container.id, None, Signal::KILL.number(), true)
                .await;
        }
        let exit = ContainerExit::not_started(chain(error));
        if let Err(error) = self
            .save(container, ContainerPhase::Exited(exit.clone()))
            .await
        {
            tracing::warn!(error = %error, "could not note that a container was not started");
        }
        container.state.send_replace(ContainerState::Exited(exit));
        self.publish(EventKind::Stopped, container);
    }
}

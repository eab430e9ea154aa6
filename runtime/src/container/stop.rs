//! Ends a container's process.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::{Container, ContainerError, ContainerState, Containers, Signal, watch};
use crate::chain::chain;
use crate::sandbox::Sandbox;
use crate::vm::VmError;

/// How long a killed container may take until its exit is visible: the guest must notice, and its
/// last output get into the log.
const KILL_LIMIT: Duration = Duration::from_secs(15).saturating_add(watch::LOG_LIMIT);

impl Containers {
    /// Asks a running container to end, and kills it when it has not after `grace`. One that does
    /// not run is fine: the CRI wants stopping to be idempotent.
    ///
    /// # Errors
    ///
    /// When the container cannot be killed.
    #[tracing::instrument(skip_all, fields(container_id = %container.id))]
    pub(crate) async fn stop(
        &self,
        container: &Container,
        grace: Duration,
    ) -> Result<(), ContainerError> {
        // A start that is under way comes first.
        drop(container.verbs.lock().await);
        if !matches!(container.state(), ContainerState::Running { .. }) {
            return Ok(());
        }
        if !grace.is_zero() {
            let signal = container.config.stop_signal;
            if let Err(error) = signal_container(container, signal, false).await {
                tracing::warn!(error = chain(&error), "could not ask a container to end");
            }
            if container.exited_within(grace).await {
                return Ok(());
            }
        }
        let killed = signal_container(container, Signal::KILL, true).await;
        if container
            .exited_within(if killed.is_ok() {
                KILL_LIMIT
            } else {
                Duration::ZERO
            })
            .await
        {
            return Ok(());
        }
        killed?;
        Err(ContainerError::Unkillable {
            id: container.id.to_string(),
            limit: KILL_LIMIT,
        })
    }

    /// Kills every running container of a sandbox that is about to be stopped, so that their exits
    /// and last output are kept. What does not die dies with the machine.
    pub(crate) async fn kill_all(&self, sandbox: &Sandbox) {
        let containers = self.of_sandbox(&sandbox.id);
        join_all(containers.iter().map(|container: &Arc<Container>| async {
            if let Err(error) = self.stop(container, Duration::ZERO).await {
                let error = chain(&error);
                tracing::warn!(container_id = %container.id, error, "could not kill a container");
            }
        }))
        .await;
    }
}

/// A process that has ended, with or without its machine, needs no signal.
async fn signal_container(
    container: &Container,
    signal: Signal,
    all: bool,
) -> Result<(), ContainerError> {
    let Ok(vm) = container.sandbox.running_vm() else {
        return Ok(());
    };
    match vm.signal(&container.id, None, signal.number(), all).await {
        Err(error) if error.is_not_found() || matches!(error, VmError::Ended(_)) => Ok(()),
        sent => Ok(sent?),
    }
}

impl Container {
    async fn exited_within(&self, limit: Duration) -> bool {
        let mut state = self.state.subscribe();
        let exited = state.wait_for(|state| matches!(state, ContainerState::Exited(_)));
        tokio::time::timeout(limit, exited).await.is_ok()
    }
}

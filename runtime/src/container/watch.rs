//! Waits for a container's exit: one task per container, from its creation to its exit or removal.

use std::sync::Arc;
use std::time::Duration;

use super::record::ContainerPhase;
use super::{Container, ContainerExit, ContainerState, Containers};
use crate::events::EventKind;
use crate::vm::{Vm, VmError};

/// How long the rest of a container's output may take to its log once its process has exited. A
/// process that outlives it may hold the pipe, and a slow disk may lag; neither hides the exit for
/// longer, and no byte is lost by it.
pub(super) const LOG_LIMIT: Duration = Duration::from_secs(5);

/// First and longest pause after a connection to the agent broke.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

impl Containers {
    /// Follows a container in a task of its own.
    pub(super) fn watch(self: &Arc<Self>, container: Arc<Container>) {
        let Some(vm) = container.sandbox.vm().cloned() else {
            return;
        };
        let containers = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = containers.follow(&container, &vm) => {}
                () = container.removed.cancelled() => {}
            }
        });
    }

    async fn follow(&self, container: &Container, vm: &Vm) {
        let exit = tokio::select! {
            biased;
            started = container.started() => match started {
                Some(started_at_ns) => exit(container, vm, started_at_ns).await,
                None => return,
            },
            end = vm.ended() => ContainerExit::of_machine(0, &end),
        };
        let removed = container.verbs.lock().await;
        // A start that failed in the meantime has said so already.
        if removed.0 || matches!(container.state(), ContainerState::Exited(_)) {
            return;
        }
        if let Err(error) = self
            .save(container, ContainerPhase::Exited(exit.clone()))
            .await
        {
            // The next daemon asks the guest again.
            let container_id = container.id.as_str();
            tracing::warn!(container_id, error = %error, "could not note a container's exit");
        }
        tracing::debug!(container_id = %container.id, code = exit.code, "a container has exited");
        container.state.send_replace(ContainerState::Exited(exit));
        self.publish(EventKind::Stopped, container);
    }
}

impl Container {
    /// When the container was started, once it is; `None` when it has exited without.
    async fn started(&self) -> Option<i64> {
        let mut state = self.state.subscribe();
        let state = state
            .wait_for(|state| *state != ContainerState::Created)
            .await
            .ok()?;
        match &*state {
            ContainerState::Running { started_at_ns } => Some(*started_at_ns),
            ContainerState::Created | ContainerState::Exited(_) => None,
        }
    }
}

/// Waits for the process and then for its output.
async fn exit(container: &Container, vm: &Vm, started_at_ns: i64) -> ContainerExit {
    let mut pause = RETRY_PAUSE.0;
    let exit = loop {
        match vm.wait(&container.id, None).await {
            Ok(exit) => break ContainerExit::of_process(started_at_ns, exit),
            Err(VmError::Ended(end)) => return ContainerExit::of_machine(started_at_ns, &end),
            Err(error) if error.is_not_found() => break ContainerExit::lost(started_at_ns),
            Err(error) => {
                let container_id = container.id.as_str();
                tracing::warn!(container_id, error = %error, "waiting for a container again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE.1);
            }
        }
    };
    // When the VMM cannot say, its end or the next log request will.
    if let Ok(false) = vm.wait_log(&container.id, LOG_LIMIT).await {
        tracing::debug!(container_id = %container.id, "output goes on after the exit");
    }
    exit
}

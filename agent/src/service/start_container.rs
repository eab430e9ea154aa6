//! Lets a created container execute its command.

use std::sync::PoisonError;
use std::time::Duration;

use isopod_proto::agent::{ContainerState, StartContainerRequest, StartContainerResponse};

use super::AgentService;
use super::error::AgentError;
use crate::container::Container;
use crate::helper::{HelperError, Request, launch};

/// How long a process may take from `start` to its command's first instruction.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

impl AgentService {
    /// Answers when the command was executed, or was refused.
    pub(super) async fn start_container(
        &self,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse, AgentError> {
        let container = self.containers.get(&request.container_id)?;
        let _alone = container.lock.write().await;
        expect_state(&container, ContainerState::CONTAINER_STATE_CREATED)?;
        launch(
            &self.reaper,
            &Request::Start(self.runtime(&container.id)),
            &[],
        )
        .await?;
        container.set_started();

        let outcome = {
            let created = container.created()?;
            created
                .outcome
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        };
        let Some(outcome) = outcome else {
            return Ok(StartContainerResponse::new());
        };
        match tokio::time::timeout(EXEC_TIMEOUT, outcome.refusal()).await {
            Ok(None) => Ok(StartContainerResponse::new()),
            Ok(Some(refusal)) => Err(refusal.into()),
            Err(_elapsed) => Err(HelperError::TimedOut.into()),
        }
    }
}

/// A word for messages.
fn name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::CONTAINER_STATE_UNSPECIFIED => "being created",
        ContainerState::CONTAINER_STATE_CREATED => "created",
        ContainerState::CONTAINER_STATE_RUNNING => "running",
        ContainerState::CONTAINER_STATE_EXITED => "exited",
    }
}

/// Checks where a container is in its life.
///
/// # Errors
///
/// [`AgentError::State`] when it is somewhere else.
pub(super) fn expect_state(
    container: &Container,
    wanted: ContainerState,
) -> Result<(), AgentError> {
    let is = container.state();
    if is == wanted {
        return Ok(());
    }
    Err(AgentError::State {
        id: container.id.clone(),
        is: name(is),
        wanted: name(wanted),
    })
}

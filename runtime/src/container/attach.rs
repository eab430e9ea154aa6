//! A container's streams, as they are now.

use std::sync::Arc;

use isopod_proto::agent::{StreamOpen, StreamRole};

use super::{ContainerError, ContainerState, Containers};
use crate::id::ContainerId;
use crate::vm::ProcessStream;

impl Containers {
    /// A copy of a running container's output from now on, and its standard input.
    ///
    /// # Errors
    ///
    /// When the container does not run or the agent refuses.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        id: &ContainerId,
        stdin: bool,
    ) -> Result<ProcessStream, ContainerError> {
        let container = self.find(id.as_str())?;
        // A created one too: who attaches first sees the first output.
        if matches!(container.state(), ContainerState::Exited(_)) {
            return Err(container.wrong_state("attached to"));
        }
        let request = StreamOpen {
            container_id: container.id.to_string(),
            role: StreamRole::STREAM_ROLE_ATTACH.into(),
            stdin,
            ..Default::default()
        };
        Ok(container
            .sandbox
            .running_vm()?
            .open_stream(&request)
            .await?)
    }
}

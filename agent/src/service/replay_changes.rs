//! Lets those who watch a volume know what has changed in it on the host.

use isopod_proto::agent::{ReplayChangesRequest, ReplayChangesResponse};

use super::AgentService;
use super::error::AgentError;
use crate::container::Serial;

impl AgentService {
    /// Replays changes of a volume. What comes faster than it can be replayed is left out.
    pub(super) async fn replay_changes(
        &self,
        request: ReplayChangesRequest,
    ) -> Result<ReplayChangesResponse, AgentError> {
        let volume = Serial::new(request.volume)?;
        let volumes = &self.surroundings.volumes;
        volumes.replay(&volume, request.changes).await;
        Ok(ReplayChangesResponse::new())
    }
}

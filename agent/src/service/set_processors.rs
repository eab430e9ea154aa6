//! Brings processors up or takes them down.

use isopod_proto::agent::{SetProcessorsRequest, SetProcessorsResponse};

use super::AgentService;
use super::error::AgentError;

impl AgentService {
    /// At least one stays, and no more come than there are.
    pub(super) async fn set_processors(
        &self,
        request: SetProcessorsRequest,
    ) -> Result<SetProcessorsResponse, AgentError> {
        let set = self.surroundings.set_processors;
        let count = tokio::task::spawn_blocking(move || set(request.count)).await;
        Ok(SetProcessorsResponse {
            count: count.map_err(|_panic| AgentError::GivenUp)?,
            ..Default::default()
        })
    }
}

//! Takes memory into use that is added to the machine.

use isopod_proto::agent::UseMemoryResponse;

use super::AgentService;
use super::error::AgentError;

impl AgentService {
    /// How much there is to be, the machine's owner says to the kernel.
    pub(super) async fn use_memory(&self) -> Result<UseMemoryResponse, AgentError> {
        let prepare = self.surroundings.use_memory;
        let prepared = tokio::task::spawn_blocking(prepare).await;
        prepared
            .map_err(|_panic| AgentError::GivenUp)?
            .map_err(AgentError::Memory)?;
        Ok(UseMemoryResponse::new())
    }
}

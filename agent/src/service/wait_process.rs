//! How did a process end?

use std::time::{SystemTime, UNIX_EPOCH};

use isopod_proto::agent::{WaitProcessRequest, WaitProcessResponse};

use super::AgentService;
use super::error::AgentError;

impl AgentService {
    /// Answers when the process has exited. A caller that goes away stops waiting.
    pub(super) async fn wait_process(
        &self,
        request: &WaitProcessRequest,
    ) -> Result<WaitProcessResponse, AgentError> {
        let process = self
            .containers
            .process(&request.container_id, &request.exec_id)?;
        let exit = process.exited().await.ok_or(AgentError::Unseen)?;
        Ok(WaitProcessResponse {
            exit_code: exit.death.code,
            exited_at_ns: nanoseconds(exit.death.at),
            oom_killed: exit.oom_killed,
            ..Default::default()
        })
    }
}

/// Since the epoch; 0 for a clock that is before it.
pub(super) fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

//! Forgets an exec.

use isopod_proto::agent::{DeleteProcessRequest, DeleteProcessResponse};

use super::AgentService;
use super::error::AgentError;
use crate::container::{ExecId, LookupError};

impl AgentService {
    /// Idempotent: an exec, or a container, that is not known is forgotten already. One that still
    /// runs must be killed first.
    pub(super) fn delete_process(
        &self,
        request: &DeleteProcessRequest,
    ) -> Result<DeleteProcessResponse, AgentError> {
        let exec_id = ExecId::new(request.exec_id.clone())?;
        let container = match self.containers.get(&request.container_id) {
            Err(LookupError::Container(_)) => return Ok(DeleteProcessResponse::new()),
            result => result?,
        };
        if container
            .process(exec_id.as_str())
            .is_ok_and(|process| process.exit().is_none())
        {
            return Err(AgentError::ExecRuns(exec_id));
        }
        if let Some(process) = container.remove_exec(&exec_id) {
            process.output.close();
            process.cgroup.remove_if_empty();
        }
        Ok(DeleteProcessResponse::new())
    }
}

//! Signals to a process, its descendants, or a whole container.

use isopod_proto::agent::{SignalProcessRequest, SignalProcessResponse};

use super::AgentService;
use super::error::AgentError;
use crate::process::Signal;

impl AgentService {
    /// With `all`, everything in the process's cgroup: the container for its init, an exec's own
    /// processes and their descendants for an exec. A process that has exited is OK; what it left
    /// behind in its cgroup still gets the signal.
    pub(super) fn signal_process(
        &self,
        request: &SignalProcessRequest,
    ) -> Result<SignalProcessResponse, AgentError> {
        let signal = Signal::new(request.signal)?;
        let process = self
            .containers
            .process(&request.container_id, &request.exec_id)?;
        if request.all {
            process.cgroup.signal(signal)?;
        } else if process.exit().is_none() {
            // Not collected, so the pid is still its own: collecting happens on this thread.
            signal.send(process.pid).map_err(AgentError::Send)?;
        }
        Ok(SignalProcessResponse::new())
    }
}

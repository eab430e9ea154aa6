//! The first call: do both sides speak the same protocol?

use std::time::SystemTime;

use isopod_proto::AGENT_PROTOCOL_VERSION;
use isopod_proto::agent::{HelloRequest, HelloResponse};
use nix::sys::utsname::uname;

use super::AgentService;
use super::error::AgentError;
use super::wait_process::nanoseconds;

impl AgentService {
    /// Compares versions. Answered before the guest is set up any further, so it does nothing else.
    pub(super) fn hello(request: &HelloRequest) -> Result<HelloResponse, AgentError> {
        if request.protocol_version != AGENT_PROTOCOL_VERSION {
            return Err(AgentError::Protocol {
                ours: AGENT_PROTOCOL_VERSION,
                theirs: request.protocol_version,
            });
        }
        let kernel_release = uname()
            .map(|names| names.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        Ok(HelloResponse {
            protocol_version: AGENT_PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release,
            clock_ns: nanoseconds(SystemTime::now()),
            ..Default::default()
        })
    }
}

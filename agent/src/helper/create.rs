//! The OCI `create` step.

use std::os::fd::OwnedFd;

use super::payload::Payload;
use super::protocol::CreateRequest;
use super::{OperationError, builder};

/// Makes the container and its first process, which waits for `start`; answers its pid.
pub(super) fn create(request: &CreateRequest, fds: Vec<OwnedFd>) -> Result<i32, OperationError> {
    let runtime = &request.runtime;
    let (builder, outcome) = builder(&runtime.container_id, request.console.as_deref(), fds)?;
    let container = builder
        .with_executor(Payload::init(outcome))
        .with_root_path(&runtime.root)?
        .as_init(&request.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    container
        .pid()
        .map(|pid| pid.as_raw())
        .ok_or(OperationError::NoPid)
}

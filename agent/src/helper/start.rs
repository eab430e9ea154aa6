//! The OCI `start` step.

use libcontainer::container::Container;

use super::OperationError;
use super::protocol::RuntimeRequest;

/// Lets the container's first process execute its command.
pub(super) fn start(request: &RuntimeRequest) -> Result<(), OperationError> {
    let mut container = Container::load(request.root.join(&request.container_id))?;
    Ok(container.start()?)
}

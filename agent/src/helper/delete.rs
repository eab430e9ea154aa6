//! The OCI `delete` step.

use libcontainer::container::Container;

use super::OperationError;
use super::protocol::RuntimeRequest;

/// Removes the container's cgroup and libcontainer's state; kills what still runs. Idempotent.
pub(super) fn delete(request: &RuntimeRequest) -> Result<(), OperationError> {
    let folder = request.root.join(&request.container_id);
    // A create that failed has removed its state already, or never wrote it.
    if !folder.join("state.json").exists() {
        return Ok(());
    }
    Ok(Container::load(folder)?.delete(true)?)
}

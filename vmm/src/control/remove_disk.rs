use isopod_proto::vmm::{RemoveDiskRequest, RemoveDiskResponse};

use super::{Control, ControlError};

/// Takes a disk off the bus, whether or not the guest let go of it, and closes its files.
/// Idempotent.
pub(super) async fn remove_disk(
    control: &Control,
    request: RemoveDiskRequest,
) -> Result<RemoveDiskResponse, ControlError> {
    control.with_running(|running| {
        running.machine.remove_disk(&request.serial);
        Ok(RemoveDiskResponse::new())
    })
}

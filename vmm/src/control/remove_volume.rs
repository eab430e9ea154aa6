use isopod_proto::vmm::{RemoveVolumeRequest, RemoveVolumeResponse};

use super::{Control, ControlError};

/// Takes a volume from the guest, whether or not it let go of it, and closes its files. Idempotent.
pub(super) async fn remove_volume(
    control: &Control,
    request: RemoveVolumeRequest,
) -> Result<RemoveVolumeResponse, ControlError> {
    control.with_running(|running| {
        running.machine.remove_volume(&request.name);
        Ok(RemoveVolumeResponse::new())
    })
}

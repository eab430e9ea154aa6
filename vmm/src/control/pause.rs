use isopod_proto::vmm::{PauseRequest, PauseResponse};

use super::{Control, ControlError};

/// Stops the vCPUs and quiesces the devices. Idempotent.
pub(super) async fn pause(
    control: &Control,
    _: PauseRequest,
) -> Result<PauseResponse, ControlError> {
    control.with_running(|running| {
        running.machine.pause();
        Ok(PauseResponse::new())
    })
}

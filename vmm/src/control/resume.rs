use isopod_proto::vmm::{ResumeRequest, ResumeResponse};

use super::{Control, ControlError};

/// Lets the devices and the vCPUs go on. Idempotent.
pub(super) async fn resume(
    control: &Control,
    _: ResumeRequest,
) -> Result<ResumeResponse, ControlError> {
    control.with_running(|running| {
        running.machine.resume();
        Ok(ResumeResponse::new())
    })
}

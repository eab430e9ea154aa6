use isopod_proto::vmm::{ShutDownRequest, ShutDownResponse};

use super::{Control, ControlError};
use crate::machine::ending::Ending;

/// Ends the machine as if its power was cut, and then the process; also one that was never started.
pub(super) async fn shut_down(
    control: &Control,
    _: ShutDownRequest,
) -> Result<ShutDownResponse, ControlError> {
    // Fails only when the process is ending already, which is what was asked for.
    let _ = control.ended.send(Ending::ShutDown);
    Ok(ShutDownResponse::new())
}

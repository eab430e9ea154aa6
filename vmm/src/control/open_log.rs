use std::fs::File;

use isopod_proto::vmm::{OpenLogRequest, OpenLogResponse};

use super::{Control, ControlError};

/// Becomes the container's primary sink and writes its output to the named descriptor.
pub(super) async fn open_log(
    control: &Control,
    request: OpenLogRequest,
) -> Result<OpenLogResponse, ControlError> {
    let logs = control.logs()?;
    let file = match request.descriptor.as_str() {
        "" => None,
        name => Some(File::from(control.descriptors.take(name)?)),
    };
    logs.open(&request.container_id, file).await?;
    Ok(OpenLogResponse::new())
}

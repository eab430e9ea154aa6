use isopod_proto::vmm::{AddVolumeRequest, AddVolumeResponse};

use super::{Control, ControlError};

/// Lets the guest find a directory or a file in its file system device.
pub(super) async fn add_volume(
    control: &Control,
    request: AddVolumeRequest,
) -> Result<AddVolumeResponse, ControlError> {
    control.with_running(|running| {
        let fd = control.descriptors.take(&request.descriptor)?;
        let volumes = running.machine.volumes()?;
        volumes.add_volume(&request.name, fd, !request.read_only)?;
        Ok(AddVolumeResponse::new())
    })
}

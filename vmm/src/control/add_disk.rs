use isopod_proto::vmm::{AddDiskRequest, AddDiskResponse};

use super::{Control, ControlError, disk};

/// Puts a disk on the PCI bus; the guest sees it when it rescans.
pub(super) async fn add_disk(
    control: &Control,
    request: AddDiskRequest,
) -> Result<AddDiskResponse, ControlError> {
    control.with_running(|running| {
        let request = request.disk.into_option().unwrap_or_default();
        // Before its descriptors are taken: they stay the other disk's then.
        if running.machine.has_disk(&request.serial) {
            return Err(crate::machine::AddError::DiskExists(request.serial).into());
        }
        let windows = running.machine.windows();
        let (serial, disk) = disk::make(&control.descriptors, request, Some(windows))?;
        running.machine.add_disk(&serial, disk)?;
        Ok(AddDiskResponse::new())
    })
}

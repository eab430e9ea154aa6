use isopod_proto::vmm::{AddNicRequest, AddNicResponse};

use super::{Control, ControlError};
use crate::machine::AddError;
use crate::virtio::net::{Nic, NicError, NicOptions, PAIRS_MAX};

/// Puts a network interface on the PCI bus; the guest sees it when it rescans.
pub(super) async fn add_nic(
    control: &Control,
    request: AddNicRequest,
) -> Result<AddNicResponse, ControlError> {
    control.with_running(|running| {
        let request = request.nic.into_option().unwrap_or_default();
        // Before its descriptors are taken: they stay the other interface's then.
        if running.machine.has_nic(&request.name) {
            return Err(AddError::NicExists(request.name).into());
        }
        let queues = request.descriptors.len();
        if queues > PAIRS_MAX {
            return Err(NicError::Queues(queues).into());
        }
        let (Ok(mac), Ok(mtu)) = (request.mac.try_into(), request.mtu.try_into()) else {
            return Err(ControlError::NicForm);
        };
        let taps = request.descriptors.iter();
        let nic = Nic::new(NicOptions {
            name: request.name,
            mac,
            mtu,
            taps: taps
                .map(|name| control.descriptors.take(name))
                .collect::<Result<_, _>>()?,
            to_guest_rate: request.to_guest_bits_per_s,
            from_guest_rate: request.from_guest_bits_per_s,
        })?;
        let name = nic.interface_name().to_owned();
        running.machine.add_nic(&name, Box::new(nic))?;
        Ok(AddNicResponse::new())
    })
}

use isopod_proto::vmm::{MachineState, StatusRequest, StatusResponse};

use super::{Control, ControlError, Phase, wait_memory};

/// What the machine is doing. Always answers.
pub(super) async fn status(
    control: &Control,
    _: StatusRequest,
) -> Result<StatusResponse, ControlError> {
    let mut response = StatusResponse::new();
    env!("CARGO_PKG_VERSION").clone_into(&mut response.vmm_version);
    let state = match &*control.lock() {
        Phase::Created => MachineState::MACHINE_STATE_CREATED,
        Phase::Stopped => MachineState::MACHINE_STATE_STOPPED,
        Phase::Running(running) => {
            let machine = &running.machine;
            response.vcpus = u32::try_from(machine.vcpus()).unwrap_or(u32::MAX);
            response.memory_mib = machine.memory_mib();
            if let Some(growth) = machine.growth() {
                (response.asked_memory_mib, response.plugged_memory_mib) =
                    wait_memory::sizes(growth);
            }
            response.disks = machine.disks();
            response.nics = machine.nics();
            response.volumes = machine.volume_names();
            response.vsock_connections = running.vsock.connections();
            if machine.is_paused() {
                MachineState::MACHINE_STATE_PAUSED
            } else {
                MachineState::MACHINE_STATE_RUNNING
            }
        }
    };
    response.state = state.into();
    Ok(response)
}

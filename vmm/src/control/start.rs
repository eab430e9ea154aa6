use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use isopod_proto::descriptors::{AGENT_IMAGE, CONSOLE, INITRAMFS, KERNEL, KVM, VSOCK};
use isopod_proto::vmm::{StartRequest, StartResponse};

use super::{Control, ControlError, Phase, Running, disk};
use crate::log::Logs;
use crate::machine::build::{MachineConfig, Root, build};
use crate::virtio::VirtioDevice;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// Builds the machine and runs its vCPUs. Once: a start that failed has used up its descriptors, so
/// the process is of no more use and is told to shut down.
pub(super) async fn start(
    control: &Control,
    request: StartRequest,
) -> Result<StartResponse, ControlError> {
    let mut phase = control.lock();
    if !matches!(*phase, Phase::Created) {
        return Err(ControlError::AlreadyStarted);
    }
    *phase = Phase::Stopped;
    let running = run(control, request)?;
    let machine = &running.machine;
    tracing::info!(
        vcpus = machine.vcpus(),
        memory_mib = machine.memory_mib(),
        "the machine runs"
    );
    *phase = Phase::Running(Box::new(running));
    Ok(StartResponse::new())
}

fn run(control: &Control, request: StartRequest) -> Result<Running, ControlError> {
    let descriptors = &control.descriptors;
    let listener = UnixListener::from(descriptors.take(VSOCK)?);
    let (vsock, handle) = Vsock::new(listener, &control.dir)?;
    let console = match request.debug_console {
        true => Some(File::from(descriptors.take(CONSOLE)?)),
        false => None,
    };
    let mut disks = Vec::new();
    for request in request.disks {
        disks.push(disk::make(descriptors, request, None)?);
    }
    let root = match request.initramfs {
        true => Root::Initramfs(descriptors.take(INITRAMFS)?.into()),
        false => Root::Image(descriptors.take(AGENT_IMAGE)?.into()),
    };
    let devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(vsock), Box::new(Rng::new())];
    let machine = build(
        MachineConfig {
            max_vcpus: request.max_vcpus,
            memory_mib: request.memory_mib,
            kernel_args: &request.kernel_args,
            kvm: descriptors.take(KVM)?,
            kernel: &File::from(descriptors.take(KERNEL)?),
            root: &root,
            console,
            devices,
            disks,
        },
        control.ended.clone(),
    )?;
    let logs = Arc::new(Logs::new(handle.clone()));
    Ok(Running {
        machine,
        vsock: handle,
        logs,
    })
}

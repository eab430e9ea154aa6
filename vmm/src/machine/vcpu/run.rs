//! Serving a vCPU's exits.
#![expect(unsafe_code, reason = "the detail of an internal error is in a union")]

use std::sync::Arc;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::machine::ending::Ending;
use crate::machine::layout;
use crate::machine::ports::Ports;
use crate::pci::bus::PciBus;

/// Where exits lead.
#[derive(Debug, Clone)]
pub(super) struct Buses {
    pub(super) pci: Arc<PciBus>,
    pub(super) ports: Arc<Ports>,
}

/// What becomes of the vCPU after an exit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Enter the guest again.
    Run,
    /// Somebody wants the thread's attention.
    Interrupted,
    /// The guest has ended.
    End(Ending),
}

/// Enters the guest once and serves its exit.
pub(super) fn run_once(vcpu: &mut VcpuFd, buses: &Buses) -> Next {
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => {
            read_memory(buses, address, data);
            Next::Run
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            write_memory(buses, address, data);
            Next::Run
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            buses.ports.read(port, data);
            Next::Run
        }
        Ok(VcpuExit::IoOut(port, data)) => match buses.ports.write(port, data) {
            None => Next::Run,
            Some(ending) => Next::End(ending),
        },
        Ok(VcpuExit::Shutdown) => Next::End(Ending::TripleFault),
        Ok(VcpuExit::Intr) => Next::Interrupted,
        Ok(exit) => {
            let exit = format!("{exit:?}");
            Next::End(Ending::Error(describe(vcpu, &exit)))
        }
        Err(error) => match error.errno() {
            libc::EINTR => Next::Interrupted,
            // A vCPU that waits to be started by another one was woken for nothing.
            libc::EAGAIN => Next::Run,
            _ => Next::End(Ending::Error(describe(vcpu, &format!("KVM_RUN: {error}")))),
        },
    }
}

fn config_offset(address: u64) -> Option<u64> {
    let offset = address.checked_sub(layout::PCI_CONFIG_START)?;
    (offset < layout::PCI_CONFIG_SIZE).then_some(offset)
}

/// Reads of configuration space do not come here: it is memory.
fn read_memory(buses: &Buses, address: u64, data: &mut [u8]) {
    buses.pci.read_memory(address, data);
}

fn write_memory(buses: &Buses, address: u64, data: &[u8]) {
    match config_offset(address) {
        Some(offset) => buses.pci.write_config(offset, data),
        None => buses.pci.write_memory(address, data),
    }
}

/// What is known about a vCPU that KVM could not run, for people.
fn describe(vcpu: &mut VcpuFd, what: &str) -> String {
    let detail = internal_error(vcpu);
    let registers = match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => format!(
            "rip={:#x} rsp={:#x} rflags={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} cr0={:#x} \
             cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x} cs={:#x}",
            regs.rip,
            regs.rsp,
            regs.rflags,
            regs.rax,
            regs.rbx,
            regs.rcx,
            regs.rdx,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer,
            sregs.cs.selector,
        ),
        _ => "registers unknown".to_owned(),
    };
    format!("KVM cannot go on with a virtual processor: {what}{detail}; {registers}")
}

/// The suberror and data of `KVM_EXIT_INTERNAL_ERROR`: with an emulation failure (1) they hold the
/// instruction's bytes.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return String::new();
    }
    // SAFETY: the exit reason, which the kernel set, says which field of the union is in use; it is
    // made of integers, for which every bit pattern is valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = usize::try_from(internal.ndata).unwrap_or(0);
    let data = &internal.data[..count.min(internal.data.len())];
    format!(" (suberror {}, data {data:x?})", internal.suberror)
}

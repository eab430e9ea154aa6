//! Building a machine, step by step.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;
use tokio::sync::mpsc::UnboundedSender;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::acpi::{self, AcpiConfig};
use super::boot::command_line::{self, CommandLineError};
use super::boot::image::{self, ImageError};
use super::boot::initramfs::{self, InitramfsError};
use super::boot::kernel::{self, KernelError};
use super::boot::pvh::{self, BootInfo};
use super::cpuid;
use super::ending::Ending;
use super::kvm::{KvmError, Vm, failed};
use super::layout;
use super::memory::{self, MemoryError};
use super::ports::Ports;
use super::vcpu::{RegisterError, VcpuError, Vcpus, enter_pvh, set_msrs};
use super::windows::Windows;
use super::{AddError, Machine};
use crate::pci::Address;
use crate::pci::bus::PciBus;
use crate::virtio::VirtioDevice;

/// Most vCPUs.
pub(crate) const VCPUS_MAX: u8 = 64;

/// Where the devices are that every machine has, by order.
const FIRST_FIXED_SLOT: u8 = 1;

/// A machine could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// Out of range.
    #[error("{0} vCPUs are out of range (1 to {VCPUS_MAX})")]
    Vcpus(u32),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// The agent's image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// The boot tables do not fit.
    #[error("writing the boot tables")]
    Tables(#[from] GuestMemoryError),
    /// The bus.
    #[error("making the PCI bus")]
    Bus(#[source] std::io::Error),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A vCPU's registers.
    #[error(transparent)]
    Registers(#[from] RegisterError),
    /// A vCPU's thread.
    #[error(transparent)]
    Threads(#[from] VcpuError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] AddError),
}

/// Where the guest's root file system is.
#[derive(Debug)]
pub(crate) enum Root {
    /// In persistent memory: an EROFS file system.
    Image(File),
    /// In RAM, where the kernel unpacks it: an archive.
    Initramfs(File),
}

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct MachineConfig<'a> {
    /// vCPUs that the guest can bring up.
    pub(crate) max_vcpus: u32,
    /// RAM in MiB.
    pub(crate) memory_mib: u32,
    /// Appended to the command line.
    pub(crate) kernel_args: &'a str,
    /// `/dev/kvm`.
    pub(crate) kvm: OwnedFd,
    /// `vmlinux`.
    pub(crate) kernel: &'a File,
    /// What holds the agent.
    pub(crate) root: &'a Root,
    /// Output of the debug console, if there is one.
    pub(crate) console: Option<File>,
    /// In slots 1, 2, ...
    pub(crate) devices: Vec<Box<dyn VirtioDevice>>,
    /// Serial number and disk, in the slots behind.
    pub(crate) disks: Vec<(String, Box<dyn VirtioDevice>)>,
}

/// Builds a machine; its vCPUs run on return. How the guest ends goes to `ended`.
///
/// # Errors
///
/// [`BuildError`]; nothing is left behind.
pub(crate) fn build(
    config: MachineConfig<'_>,
    ended: UnboundedSender<Ending>,
) -> Result<Machine, BuildError> {
    let max_vcpus = u8::try_from(config.max_vcpus)
        .ok()
        .filter(|count| (1..=VCPUS_MAX).contains(count))
        .ok_or(BuildError::Vcpus(config.max_vcpus))?;
    let memory = memory::allocate(config.memory_mib)?;
    let entry = fill_memory(&config, max_vcpus, &memory)?;
    let root = config.root;

    let pci = Arc::new(PciBus::new().map_err(BuildError::Bus)?);
    let vm = Arc::new(Vm::new(config.kvm)?);
    vm.register_memory(&memory, pci.config_host_address())?;
    vm.set_up_interrupts()?;

    let ports = Arc::new(Ports::new(config.console));
    let mut machine = Machine {
        vcpus: Vcpus::new(Arc::clone(&pci), ports, ended)?,
        disks: BTreeMap::new(),
        nics: BTreeMap::new(),
        volumes: None,
        windows: Windows::new(Arc::clone(&vm) as _),
        vm,
        pci,
        memory,
        memory_mib: config.memory_mib,
        growth: None,
        paused: false,
    };
    let mut devices = config.devices;
    if let Root::Image(file) = root {
        devices.push(Box::new(image::device(file, &machine.windows)?));
    }
    for (slot, device) in (FIRST_FIXED_SLOT..).zip(devices) {
        machine.add_function(Address::new(slot, 0), device);
    }
    for (serial, disk) in config.disks {
        machine.add_disk(&serial, disk)?;
    }
    start_vcpus(&mut machine, max_vcpus, entry)?;
    Ok(machine)
}

/// Kernel, initramfs if there is one, and tables. Returns where the kernel is entered.
fn fill_memory(
    config: &MachineConfig<'_>,
    max_vcpus: u8,
    memory: &GuestMemoryMmap,
) -> Result<u32, BuildError> {
    let ram = layout::ram_ranges(config.memory_mib);
    let unpacks = matches!(config.root, Root::Initramfs(_));
    for range in layout::sparse_ranges(&ram, unpacks) {
        memory::prefer_small_pages(memory, range);
    }
    let kernel = kernel::load(config.kernel, memory, unpacks)?;
    let initramfs = match config.root {
        Root::Initramfs(file) => Some(initramfs::load(file, memory, ram[0], kernel.end)?),
        Root::Image(_) => None,
    };
    let debug_console = config.console.is_some();
    let tables = acpi::tables(
        layout::ACPI_TABLES,
        AcpiConfig {
            max_vcpus,
            debug_console,
        },
    );
    memory.write_slice(&tables, GuestAddress(layout::ACPI_TABLES))?;
    let info = BootInfo {
        ram: &ram,
        initramfs,
        command_line: &command_line::build(config.root, config.kernel_args, debug_console)?,
        rsdp: layout::ACPI_TABLES,
    };
    pvh::write(memory, &info)?;
    Ok(kernel.entry)
}

/// Makes every vCPU and lets the first one run; the others wait in KVM for the guest to start them.
fn start_vcpus(machine: &mut Machine, max_vcpus: u8, entry: u32) -> Result<(), BuildError> {
    let supported = machine.vm.supported_cpuid()?;
    let mut vcpus = Vec::with_capacity(usize::from(max_vcpus));
    for id in 0..max_vcpus {
        vcpus.push(make_vcpu(&machine.vm, &supported, id, max_vcpus)?);
    }
    enter_pvh(&vcpus[0], entry)?;
    for vcpu in vcpus {
        machine.vcpus.spawn(vcpu)?;
    }
    Ok(())
}

fn make_vcpu(vm: &Vm, supported: &CpuId, id: u8, max_vcpus: u8) -> Result<VcpuFd, BuildError> {
    let vcpu = vm.create_vcpu(id)?;
    let cpuid = cpuid::for_vcpu(supported, id, max_vcpus).ok_or(KvmError::Cpuid)?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
    set_msrs(&vcpu)?;
    Ok(vcpu)
}

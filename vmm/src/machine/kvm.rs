//! KVM: the VM's file descriptor and what the rest of the machine asks of it.
#![expect(unsafe_code, reason = "registering memory with KVM")]

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_EXT_CPUID, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD,
    KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_READONLY_MEM, KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_USER_MEMORY, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_enable_cap, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use super::layout;
use super::windows::Slots;
use crate::pci::Hypervisor;

/// What the machine cannot do without, by the names of the kernel's documentation.
const CAPABILITIES: &[(u32, &str)] = &[
    (KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
    (KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM"),
    (KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"),
    (KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"),
    (KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"),
    (KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
    (KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"),
];

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    /// Too old, too new or not KVM at all.
    #[error("the KVM API has version {0}, not {KVM_API_VERSION}")]
    Version(i32),
    /// The host's KVM lacks something.
    #[error("this host's KVM has no {0}")]
    Capability(&'static str),
    /// It knows more processor features than fit into its own call.
    #[error("the processor's features do not fit into KVM_SET_CPUID2")]
    Cpuid,
    /// A call failed.
    #[error("{call}")]
    Call {
        /// Which.
        call: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Makes a [`KvmError::Call`] of what `call` returned.
pub(crate) fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { call, source }
}

/// The VM: memory slots, vCPUs, interrupts and notifications.
#[derive(Debug)]
pub(crate) struct Vm {
    kvm: Kvm,
    vm: VmFd,
}

impl Vm {
    /// Makes a VM through `kvm`, a descriptor of `/dev/kvm`.
    ///
    /// # Errors
    ///
    /// When KVM is another version, lacks a capability, or is out of resources.
    pub(crate) fn new(kvm: OwnedFd) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is owned and given away; that it is KVM's is checked next.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let version = kvm.get_api_version();
        if i64::from(version) != i64::from(KVM_API_VERSION) {
            return Err(KvmError::Version(version));
        }
        for (capability, name) in CAPABILITIES {
            if kvm.check_extension_raw((*capability).into()) <= 0 {
                return Err(KvmError::Capability(name));
            }
        }
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        Ok(Self { kvm, vm })
    }

    /// Registers guest RAM and the read-only configuration space at `config_host_address`. All
    /// memory slots come before the interrupt controller and the first notification: a slot added
    /// after them costs milliseconds.
    ///
    /// # Errors
    ///
    /// When KVM refuses a slot.
    pub(crate) fn register_memory(
        &self,
        memory: &GuestMemoryMmap,
        config_host_address: u64,
    ) -> Result<(), KvmError> {
        let ram = memory.iter().map(|region| kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        });
        let config = kvm_userspace_memory_region {
            slot: 0,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: layout::PCI_CONFIG_START,
            memory_size: layout::PCI_CONFIG_SIZE,
            userspace_addr: config_host_address,
        };
        for (slot, region) in (0..).zip(ram.chain([config])) {
            let region = kvm_userspace_memory_region { slot, ..region };
            // SAFETY: RAM and configuration space stay mapped as long as the machine, which owns
            // both and drops the VM first, and are accessed through volatile accesses only.
            unsafe { self.vm.set_user_memory_region(region) }
                .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Registers memory that guest RAM has been extended by, while the guest runs.
    ///
    /// # Errors
    ///
    /// When KVM refuses the slot.
    pub(crate) fn register_extent(
        &self,
        slot: u32,
        extent: &GuestRegionMmap,
    ) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: extent.start_addr().raw_value(),
            memory_size: extent.len(),
            userspace_addr: extent.as_ptr() as u64,
        };
        // SAFETY: as in `register_memory`: the machine owns extended RAM as it does the first.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(failed("KVM_SET_USER_MEMORY_REGION"))
    }

    /// Local APICs in the kernel; no PIC, no I/O APIC, no PIT. Before the first vCPU.
    ///
    /// # Errors
    ///
    /// When KVM refuses.
    pub(crate) fn set_up_interrupts(&self) -> Result<(), KvmError> {
        let tss = usize::try_from(layout::KVM_TSS).expect("an address below 4 GiB");
        self.vm
            .set_tss_address(tss)
            .map_err(failed("KVM_SET_TSS_ADDR"))?;
        self.vm
            .set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        // No pins of an I/O APIC in userspace.
        let capability = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            ..Default::default()
        };
        self.vm
            .enable_cap(&capability)
            .map_err(failed("KVM_CAP_SPLIT_IRQCHIP"))
    }

    /// What KVM can show a guest of the host's processor.
    ///
    /// # Errors
    ///
    /// When KVM refuses.
    pub(crate) fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("KVM_GET_SUPPORTED_CPUID"))
    }

    /// Makes the vCPU with this APIC id.
    ///
    /// # Errors
    ///
    /// When KVM refuses.
    pub(crate) fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.vm
            .create_vcpu(u64::from(id))
            .map_err(failed("KVM_CREATE_VCPU"))
    }
}

fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

impl Hypervisor for Vm {
    fn signal_msi(&self, address: u64, data: u32) -> io::Result<()> {
        let halves = address.to_le_bytes();
        let word = |at: usize| {
            u32::from_le_bytes([halves[at], halves[at + 1], halves[at + 2], halves[at + 3]])
        };
        let message = kvm_msi {
            address_lo: word(0),
            address_hi: word(4),
            data,
            ..Default::default()
        };
        self.vm.signal_msi(message).map(drop).map_err(errno)
    }

    fn add_notifier(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(errno)
    }

    fn remove_notifier(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(errno)
    }
}

impl Slots for Vm {
    unsafe fn set(&self, slot: u32, address: u64, host: u64, size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: the caller keeps it mapped.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(errno)
    }

    fn clear(&self, slot: u32) -> io::Result<()> {
        let nothing = kvm_userspace_memory_region {
            slot,
            ..Default::default()
        };
        // SAFETY: a slot without memory.
        unsafe { self.vm.set_user_memory_region(nothing) }.map_err(errno)
    }
}

//! The machine: guest memory, vCPUs, buses, and the devices on them.
//!
//! The control thread owns it. It is built once ([`build`]), runs until the guest ends, can be
//! paused, takes disks on and off its bus, and
//! network interfaces on it, and has more memory or less ([`growth`]):
//!
//! ```text
//!           pause            end (guest, ShutDown)
//!  running ───────> paused ───────────────┐
//!     ^  ^────────────│                   v
//!  build     resume                     ended
//! ```
//!
//! vCPU threads ([`vcpu`]) share the buses with it; each function on the PCI bus has its own lock.

pub(crate) mod acpi;
pub(crate) mod boot;
pub(crate) mod build;
pub(crate) mod cpuid;
pub(crate) mod ending;
pub(crate) mod growth;
pub(crate) mod kvm;
pub(crate) mod layout;
pub(crate) mod memory;
pub(crate) mod ports;
pub(crate) mod vcpu;
pub(crate) mod windows;

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use self::growth::Growth;
use self::kvm::Vm;
use self::vcpu::Vcpus;
use self::windows::Windows;
use crate::pci::bus::{self, BusError, PciBus};
use crate::pci::{Address, Hypervisor};
use crate::virtio::VirtioDevice;
use crate::virtio::fs;
use crate::virtio::pci::VirtioPci;

/// A device cannot be added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum AddError {
    /// The disk's serial number is taken.
    #[error("there is a disk {0} already")]
    DiskExists(String),
    /// The interface's name is taken.
    #[error("there is a network interface {0} already")]
    NicExists(String),
    /// No room.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The device for volumes cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumesError {
    /// No room.
    #[error(transparent)]
    Add(#[from] AddError),
    /// This process's own files are out of reach.
    #[error("making the file system device")]
    Server(#[source] std::io::Error),
}

/// A running or paused machine.
#[derive(Debug)]
pub(crate) struct Machine {
    // Dropped in this order: vCPUs, then devices, then the VM, then what its slots are backed by.
    vcpus: Vcpus,
    disks: BTreeMap<String, Address>,
    nics: BTreeMap<String, Address>,
    /// There once the first volume was.
    volumes: Option<Arc<fs::Server>>,
    vm: Arc<Vm>,
    windows: Arc<Windows>,
    pci: Arc<PciBus>,
    /// RAM, and what it was extended by.
    memory: GuestMemoryMmap,
    memory_mib: u32,
    /// There after the first resize.
    growth: Option<Growth>,
    paused: bool,
}

impl Machine {
    /// Stops the vCPUs and then the devices. Idempotent.
    pub(crate) fn pause(&mut self) {
        if self.paused {
            return;
        }
        self.vcpus.hold();
        for function in self.pci.functions() {
            bus::lock(&function).pause();
        }
        self.paused = true;
    }

    /// Starts the devices and then the vCPUs. Idempotent.
    pub(crate) fn resume(&mut self) {
        if !self.paused {
            return;
        }
        for function in self.pci.functions() {
            bus::lock(&function).resume();
        }
        self.vcpus.go();
        self.paused = false;
    }

    /// Its vCPUs are held.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Puts a disk on the bus; the guest sees it when it rescans.
    ///
    /// # Errors
    ///
    /// [`AddError`].
    pub(crate) fn add_disk(
        &mut self,
        serial: &str,
        disk: Box<dyn VirtioDevice>,
    ) -> Result<(), AddError> {
        if self.disks.contains_key(serial) {
            return Err(AddError::DiskExists(serial.to_owned()));
        }
        let address = self.pci.free_address()?;
        self.add_function(address, disk);
        self.disks.insert(serial.to_owned(), address);
        tracing::info!(serial, %address, "disk added");
        Ok(())
    }

    /// Takes a disk off the bus and closes its files. Idempotent.
    pub(crate) fn remove_disk(&mut self, serial: &str) {
        if let Some(address) = self.disks.remove(serial) {
            self.pci.remove(address);
            tracing::info!(serial, %address, "disk removed");
        }
    }

    /// Serial numbers of the disks on the bus.
    pub(crate) fn disks(&self) -> Vec<String> {
        self.disks.keys().cloned().collect()
    }

    /// Where disks as memory are shown to the guest.
    pub(crate) fn windows(&self) -> &Arc<Windows> {
        &self.windows
    }

    /// There is a disk with this serial number.
    pub(crate) fn has_disk(&self, serial: &str) -> bool {
        self.disks.contains_key(serial)
    }

    /// Puts a network interface on the bus; the guest sees it when it rescans.
    ///
    /// # Errors
    ///
    /// [`AddError`].
    pub(crate) fn add_nic(
        &mut self,
        name: &str,
        nic: Box<dyn VirtioDevice>,
    ) -> Result<(), AddError> {
        if self.nics.contains_key(name) {
            return Err(AddError::NicExists(name.to_owned()));
        }
        let address = self.pci.free_address()?;
        self.add_function(address, nic);
        self.nics.insert(name.to_owned(), address);
        tracing::info!(name, %address, "network interface added");
        Ok(())
    }

    /// Names of the network interfaces on the bus.
    pub(crate) fn nics(&self) -> Vec<String> {
        self.nics.keys().cloned().collect()
    }

    /// There is a network interface with this name.
    pub(crate) fn has_nic(&self, name: &str) -> bool {
        self.nics.contains_key(name)
    }

    /// The pod's volumes. The first call puts their device on the bus; the guest sees it when it
    /// rescans.
    ///
    /// # Errors
    ///
    /// When there is no room for the device.
    pub(crate) fn volumes(&mut self) -> Result<Arc<fs::Server>, VolumesError> {
        if let Some(volumes) = &self.volumes {
            return Ok(Arc::clone(volumes));
        }
        let address = self.pci.free_address().map_err(AddError::from)?;
        let volumes = Arc::new(fs::Server::new().map_err(VolumesError::Server)?);
        self.add_function(address, Box::new(fs::Fs::new(Arc::clone(&volumes))));
        tracing::info!(%address, "file system device added");
        self.volumes = Some(Arc::clone(&volumes));
        Ok(volumes)
    }

    /// Takes a volume from the guest. Idempotent.
    pub(crate) fn remove_volume(&self, name: &str) {
        if let Some(volumes) = &self.volumes {
            volumes.remove_volume(name);
        }
    }

    /// Names of the volumes.
    pub(crate) fn volume_names(&self) -> Vec<String> {
        let volumes = self.volumes.as_ref();
        volumes.map(|volumes| volumes.volumes()).unwrap_or_default()
    }

    /// Number of vCPUs.
    pub(crate) fn vcpus(&self) -> usize {
        self.vcpus.count()
    }

    /// RAM that it was built with, in MiB.
    pub(crate) fn memory_mib(&self) -> u32 {
        self.memory_mib
    }

    fn add_function(&self, address: Address, device: Box<dyn VirtioDevice>) {
        let hypervisor: Arc<dyn Hypervisor> = Arc::clone(&self.vm) as _;
        // Only where functions come and go is it worth the guest's while to look for more.
        let multi_function = address >= Address::new(bus::FIRST_DYNAMIC_SLOT, 0);
        let memory = self.memory.clone();
        let function = VirtioPci::new(device, address, multi_function, memory, hypervisor);
        self.pci.add(address, function);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // No vCPU may use what is taken down next.
        self.vcpus.end();
        for function in self.pci.functions() {
            bus::lock(&function).retire();
        }
    }
}

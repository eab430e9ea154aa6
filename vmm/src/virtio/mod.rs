//! virtio 1.2 devices and what they share.
//!
//! A device ([`VirtioDevice`]) knows what it is, its features and its configuration space; the PCI
//! transport (`virtio::pci`) owns feature negotiation, queue registers, MSI-X and the device status.
//! The transport calls a device on the thread of the vCPU that wrote a register, or on the control
//! thread; a device does its work on worker threads that it starts in [`VirtioDevice::activate`]
//! and joins in [`VirtioDevice::deactivate`].
//!
//! ```text
//!            activate(queues)                  deactivate() -> queues
//!  idle ──────────────────────────> running ──────────────────────────> idle
//!    (driver sets DRIVER_OK, resume)           (reset, pause, removal)
//! ```
//!
//! The machine makes the devices while it handles `Start`, `AddDisk`, `AddNic`, `AddVolume` and
//! `ResizeMemory` on the control thread, from descriptors that it was handed; a device opens nothing by path outside the sandbox's directory:
//!
//! | device | slot on bus 0 | made by |
//! |---|---|---|
//! | vsock | 1 | `vsock::Vsock::new(listener: UnixListener, dir: &Path) -> Result<(Vsock, VsockHandle), VsockError>`; the handle (`Clone + Send + Sync`) opens host-side connections for the container logs and counts the open ones |
//! | rng | 2 | `rng::Rng::new() -> Rng`, from `getrandom(2)` |
//! | disks | 3 and up | `blk::Disk::new(blk::DiskOptions { serial, read_only, extents: Vec<blk::Extent { file: File, offset: u64, length: u64 }> }) -> Result<Disk, DiskError>` |
//! | disks as memory | 3 and up | `pmem::Pmem::new(serial: String, window: machine::windows::Window) -> Pmem` |
//! | memory that comes and goes | 3 and up, with the first resize | `mem::Mem::new(range) -> (Mem, MemHandle)`; by the handle the control thread asks the guest for more or less |
//! | volumes | 3 and up, with the first one | `fs::Fs::new(Arc<fs::Server>) -> Fs`; the server keeps the volumes, and the control thread adds and removes them |
//! | network interfaces | 3 and up | `net::Nic::new(net::NicOptions { name, mac, mtu, taps: Vec<OwnedFd> }) -> Result<Nic, NicError>` |
//!
//! A pause is a `deactivate` whose queues are kept and given back to `activate`. After `deactivate`
//! returns, a device touches neither guest memory nor its interrupt: no completion can arrive after
//! a reset or a removal.

pub(crate) mod blk;
mod chain;
pub(crate) mod fs;
pub(crate) mod mem;
pub(crate) mod net;
pub(crate) mod pci;
pub(crate) mod pmem;
mod queue_worker;
pub(crate) mod rng;
mod segments;
#[cfg(any(test, fuzzing))]
mod testing;
mod used;
pub(crate) mod vsock;

use std::fmt::Debug;
use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// A queue that the driver has set up, and how the driver and the device wake each other.
#[derive(Debug)]
pub(crate) struct ActiveQueue {
    /// Position in [`VirtioDevice::queue_sizes`].
    pub(crate) index: usize,
    /// The validated virtqueue.
    pub(crate) queue: Queue,
    /// Readable when the driver has notified the queue (an ioeventfd).
    pub(crate) notify: EventFd,
}

/// How a device interrupts the driver (virtio 1.2 section 4.1.5). Implemented by the transport.
pub(crate) trait Interrupt: Debug + Send + Sync {
    /// Used buffers are available in queue `index`.
    fn queue(&self, index: usize);
    /// The configuration space has changed.
    fn config(&self);
    /// The driver broke the rules: sets DEVICE_NEEDS_RESET (section 2.1.1) and tells the driver.
    fn needs_reset(&self);
}

/// What a device gets when the driver is ready (DRIVER_OK).
#[derive(Debug)]
pub(crate) struct Activation {
    /// The guest's memory.
    pub(crate) memory: GuestMemoryMmap,
    /// Feature bits that both sides accepted.
    pub(crate) features: u64,
    /// Every queue that the driver enabled.
    pub(crate) queues: Vec<ActiveQueue>,
    /// The way back to the driver.
    pub(crate) interrupt: Arc<dyn Interrupt>,
}

/// A device could not start its workers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivateError {
    /// A queue that the device cannot do without was not enabled.
    #[error("queue {0} is not enabled")]
    QueueMissing(usize),
    /// The worker thread or its event descriptors could not be made.
    #[error("starting the worker of {device}")]
    Worker {
        /// The device's name in logs.
        device: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A virtio device behind any transport.
pub(crate) trait VirtioDevice: Debug + Send {
    /// Name in logs and thread names.
    fn name(&self) -> &'static str;

    /// Device type (virtio 1.2 section 5).
    fn device_type(&self) -> u16;

    /// Most descriptors in each queue; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Feature bits of this device type, without the transport's own (`VIRTIO_F_VERSION_1`, ...).
    fn features(&self) -> u64;

    /// The device-specific configuration space as the driver reads it.
    fn config(&self) -> Vec<u8>;

    /// Bytes for the vendor data of its PCI function (section 4.1.4.8), at most 64; empty for none.
    fn vendor_data(&self) -> &[u8] {
        &[]
    }

    /// Starts to work on the queues.
    ///
    /// # Errors
    ///
    /// When workers cannot be started; the transport then marks the device as needing reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the workers, waits for them, and hands the queues back. Empty when not active.
    fn deactivate(&mut self) -> Vec<ActiveQueue>;

    /// Forgets what belongs to the driver's last life (virtio 1.2 section 2.4), after `deactivate`.
    fn reset(&mut self) {}

    /// What a snapshot must keep of the device itself, queues and transport aside.
    fn state(&self) -> serde_json::Value;
}

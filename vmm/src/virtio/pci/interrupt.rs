//! What the transport shares with its device's workers: the way to interrupt the driver, and the
//! registers that a worker changes.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::NO_VECTOR;
use super::common::status;
use crate::pci::msix::Msix;
use crate::virtio::Interrupt;

/// Bits of the ISR status register (virtio 1.2 section 4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// The device's side of a function's interrupts.
///
/// Workers hold it as [`Interrupt`]; they never take the function's lock, so a vCPU may wait for a
/// worker while it holds that.
#[derive(Debug)]
pub(crate) struct FunctionInterrupt {
    msix: Mutex<Msix>,
    queue_vectors: Vec<AtomicU16>,
    config_vector: AtomicU16,
    /// Device status (section 2.1). The driver's bits are written under the function's lock.
    status: AtomicU8,
    isr: AtomicU8,
    config_generation: AtomicU8,
    /// False from the removal of the function on: nothing is sent any more.
    live: AtomicBool,
}

impl FunctionInterrupt {
    /// For a device with `queues` queues, none of which has a vector yet.
    pub(crate) fn new(msix: Msix, queues: usize) -> Self {
        Self {
            msix: Mutex::new(msix),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config_vector: AtomicU16::new(NO_VECTOR),
            status: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            config_generation: AtomicU8::new(0),
            live: AtomicBool::new(true),
        }
    }

    /// The MSI-X table.
    pub(crate) fn msix(&self) -> MutexGuard<'_, Msix> {
        self.msix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vector of queue `index`; [`NO_VECTOR`] for a queue that does not exist.
    pub(crate) fn queue_vector(&self, index: usize) -> u16 {
        self.queue_vectors
            .get(index)
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Sets the vector of queue `index`, or none if there is no such vector.
    pub(crate) fn set_queue_vector(&self, index: usize, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(index) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    /// The vector of configuration changes.
    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Sets the vector of configuration changes, or none if there is no such vector.
    pub(crate) fn set_config_vector(&self, vector: u16) {
        let vector = self.existing(vector);
        self.config_vector.store(vector, Ordering::Release);
    }

    /// The driver learns by reading back that a vector does not exist (section 4.1.5.1.2).
    fn existing(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix().vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// Device status.
    pub(crate) fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Adds bits to the device status.
    pub(crate) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// Counts changes of the device's configuration.
    pub(crate) fn config_generation(&self) -> u8 {
        self.config_generation.load(Ordering::Acquire)
    }

    /// Reads the ISR status, which clears it.
    pub(crate) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Back to how it was before the driver (section 2.4); the MSI-X table is PCI's and stays.
    pub(crate) fn reset(&self) {
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }

    /// Nothing is sent from now on.
    pub(crate) fn silence(&self) {
        self.live.store(false, Ordering::Release);
    }

    fn trigger(&self, vector: u16) {
        if vector != NO_VECTOR && self.live.load(Ordering::Acquire) {
            self.msix().trigger(vector);
        }
    }
}

impl Interrupt for FunctionInterrupt {
    fn queue(&self, index: usize) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        self.trigger(self.queue_vector(index));
    }

    fn config(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.trigger(self.config_vector());
    }

    fn needs_reset(&self) {
        self.add_status(status::NEEDS_RESET);
        if self.status() & status::DRIVER_OK != 0 {
            self.config();
        }
    }
}

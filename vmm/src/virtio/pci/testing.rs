//! Stand-ins for the hypervisor and a device, for unit tests.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use vm_memory::{GuestMemory, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::pci::Hypervisor;
use crate::virtio::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};

/// Notes what it is asked for.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    messages: Mutex<Vec<(u64, u32)>>,
    notifiers: Mutex<Vec<(u64, i32)>>,
}

impl Recorder {
    /// Messages sent since the last call.
    pub(crate) fn take_messages(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.messages.lock().unwrap())
    }

    /// Addresses that are watched.
    pub(crate) fn notifiers(&self) -> Vec<u64> {
        let notifiers = self.notifiers.lock().unwrap();
        notifiers.iter().map(|(address, _)| *address).collect()
    }
}

impl Hypervisor for Recorder {
    fn signal_msi(&self, address: u64, data: u32) -> io::Result<()> {
        self.messages.lock().unwrap().push((address, data));
        Ok(())
    }

    fn add_notifier(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let mut notifiers = self.notifiers.lock().unwrap();
        if notifiers.iter().any(|(taken, _)| *taken == address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        notifiers.push((address, event.as_raw_fd()));
        Ok(())
    }

    fn remove_notifier(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let mut notifiers = self.notifiers.lock().unwrap();
        let known = notifiers
            .iter()
            .position(|known| *known == (address, event.as_raw_fd()))
            .ok_or(io::ErrorKind::NotFound)?;
        notifiers.remove(known);
        Ok(())
    }
}

/// What a [`TestDevice`] was asked to do.
#[derive(Debug, Default)]
pub(crate) struct TestDeviceLog {
    pub(crate) activations: usize,
    pub(crate) deactivations: usize,
    pub(crate) resets: usize,
    pub(crate) features: u64,
    /// Bytes of memory that it may use.
    pub(crate) memory: u64,
    pub(crate) interrupt: Option<Arc<dyn Interrupt>>,
    pub(crate) refuse: bool,
}

/// A device with two queues that does no work.
#[derive(Debug, Default)]
pub(crate) struct TestDevice {
    pub(crate) log: Arc<Mutex<TestDeviceLog>>,
    queues: Vec<ActiveQueue>,
}

/// The one feature of a [`TestDevice`].
pub(crate) const TEST_FEATURE: u64 = 1 << 5;

impl VirtioDevice for TestDevice {
    fn name(&self) -> &'static str {
        "test"
    }

    fn device_type(&self) -> u16 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn features(&self) -> u64 {
        TEST_FEATURE
    }

    fn config(&self) -> Vec<u8> {
        b"isopod".to_vec()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut log = self.log.lock().unwrap();
        if log.refuse {
            return Err(ActivateError::QueueMissing(1));
        }
        log.activations += 1;
        log.features = activation.features;
        log.memory = activation.memory.iter().map(GuestMemoryRegion::len).sum();
        log.interrupt = Some(activation.interrupt);
        self.queues = activation.queues;
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<ActiveQueue> {
        let mut log = self.log.lock().unwrap();
        log.deactivations += 1;
        std::mem::take(&mut self.queues)
    }

    fn reset(&mut self) {
        self.log.lock().unwrap().resets += 1;
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({"test": true})
    }
}

//! The virtio PCI transport (virtio 1.2 section 4.1), one [`VirtioPci`] per function.
//!
//! Registers are written on vCPU threads, functions come and go on the control thread; both hold the
//! function's lock. Device workers hold only a [`FunctionInterrupt`].
//!
//! ```text
//!          DRIVER_OK            pause
//!   idle ────────────> running ────────> paused
//!    ^  ^────────────────│ ^───────────────│
//!    │     status = 0           resume
//!    └── retired (removed; from any, for good)
//! ```
//!
//! The one memory window of a function:
//!
//! ```text
//! 0000  common configuration (4.1.4.3)      2000  notifications, one per queue (4.1.4.4)
//! 0800  ISR status (4.1.4.5)                3000  MSI-X table
//! 1000  device configuration (4.1.4.6)      3800  MSI-X pending bits
//! ```
//!
//! A notification is an eventfd that the hypervisor signals. It is registered while the device runs
//! and its window answers; at any other time a write reaches [`VirtioPci::write_bar`], which
//! signals the same eventfd.

pub(crate) mod common;
mod identity;
pub(crate) mod interrupt;
mod queues;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::Serialize;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use self::common::{Action, CommonConfig};
use self::identity::Capabilities;
use self::interrupt::FunctionInterrupt;
use self::queues::Notifier;
use super::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::pci::config::{BAR_SIZE, ConfigSpace, ConfigState};
use crate::pci::msix::{Msix, MsixState};
use crate::pci::{Address, Hypervisor};

/// `VIRTIO_MSI_NO_VECTOR` (section 4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x0800;
const DEVICE: u64 = 0x1000;
const NOTIFY: u64 = 0x2000;
const MSIX_TABLE: u64 = 0x3000;
const MSIX_PENDING: u64 = 0x3800;

/// Bytes between the notification addresses of two queues (`notify_off_multiplier`).
const NOTIFY_STRIDE: u64 = 4;

/// What the function's device does; see the module's drawing.
#[derive(Debug)]
enum Phase {
    Idle,
    Running,
    Paused(Vec<ActiveQueue>),
    Retired,
}

/// A virtio device on the bus.
#[derive(Debug)]
pub(crate) struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    hypervisor: Arc<dyn Hypervisor>,
    interrupt: Arc<FunctionInterrupt>,
    config: ConfigSpace,
    capabilities: Capabilities,
    common: CommonConfig,
    phase: Phase,
    notifiers: Vec<Notifier>,
    /// A failure was logged. A guest can fail as often as it likes, and shall not fill the log.
    failed_before: bool,
}

/// Where a queue's device side has got to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct QueueProgress {
    index: usize,
    next_avail: u16,
    next_used: u16,
}

/// What a snapshot keeps of a function. Complete while it is idle or paused.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct VirtioPciState {
    device: &'static str,
    device_state: serde_json::Value,
    config: ConfigState,
    common: CommonConfig,
    status: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    msix: MsixState,
    queues: Vec<QueueProgress>,
}

impl VirtioPci {
    /// Puts `device` behind a function at `address`.
    ///
    /// `multi_function` says that other functions may share the slot.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        address: Address,
        multi_function: bool,
        memory: GuestMemoryMmap,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> Self {
        let queues = device.queue_sizes().len();
        // One vector for each queue and one for configuration changes.
        let msix = Msix::new(Arc::clone(&hypervisor), queues + 1);
        let offered = device.features()
            | common::FEATURE_VERSION_1
            | common::FEATURE_INDIRECT_DESC
            | common::FEATURE_EVENT_IDX;
        let common = CommonConfig::new(offered, device.queue_sizes());
        let (config, capabilities) =
            identity::config_space(device.as_ref(), address, multi_function);
        Self {
            interrupt: Arc::new(FunctionInterrupt::new(msix, queues)),
            device,
            memory,
            hypervisor,
            config,
            capabilities,
            common,
            phase: Phase::Idle,
            notifiers: Vec::new(),
            failed_before: false,
        }
    }

    /// The function's configuration space.
    pub(crate) fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Base of its memory window while that answers.
    pub(crate) fn window(&self) -> Option<u64> {
        self.config.window()
    }

    /// It was removed from the bus.
    pub(crate) fn is_retired(&self) -> bool {
        matches!(self.phase, Phase::Retired)
    }

    /// Takes a guest's write to configuration space at `register`.
    pub(crate) fn write_config(&mut self, register: usize, data: &[u8]) {
        self.config.write(register, data);
        let touched = register..register + data.len();
        if self.capabilities.msix_control_in(&touched) {
            let control = self.capabilities.msix_control(&self.config);
            self.interrupt.msix().set_control(control);
        }
        if self.capabilities.access_in(&touched) {
            self.access_window(&touched);
        }
        self.wire_notifiers();
    }

    /// The "PCI configuration access" capability (section 4.1.4.9): reads and writes the memory
    /// window by way of configuration space. As configuration space is memory, the data register
    /// shows what the window held when any of the capability's registers was last written.
    fn access_window(&mut self, touched: &std::ops::Range<usize>) {
        let Some((offset, length)) = self.capabilities.access_target(&self.config) else {
            return;
        };
        let mut data = self.capabilities.access_data(&self.config);
        if self.capabilities.access_data_in(touched) {
            self.write_bar(offset, &data[..length]);
        }
        self.read_bar(offset, &mut data[..length]);
        self.capabilities.set_access_data(&mut self.config, data);
    }

    /// Answers a read from the memory window, `offset` bytes from its base.
    pub(crate) fn read_bar(&self, offset: u64, data: &mut [u8]) {
        if self.is_retired() {
            data.fill(0xff);
            return;
        }
        data.fill(0);
        let within = usize::try_from(offset % BAR_SIZE).unwrap_or(0);
        match offset {
            COMMON..ISR => self.common.read(&self.interrupt, within, data),
            ISR => data
                .iter_mut()
                .take(1)
                .for_each(|byte| *byte = self.interrupt.take_isr()),
            DEVICE..NOTIFY => self.read_device_config(offset - DEVICE, data),
            MSIX_TABLE..MSIX_PENDING => {
                let at = within - usize::try_from(MSIX_TABLE).unwrap_or(0);
                self.interrupt.msix().read_table(at, data);
            }
            MSIX_PENDING..BAR_SIZE => {
                let at = within - usize::try_from(MSIX_PENDING).unwrap_or(0);
                self.interrupt.msix().read_pending(at, data);
            }
            _ => {}
        }
    }

    fn read_device_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.device.config();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(config.iter().skip(at)) {
            *byte = *value;
        }
    }

    /// Takes a write to the memory window, `offset` bytes from its base.
    pub(crate) fn write_bar(&mut self, offset: u64, data: &[u8]) {
        if self.is_retired() {
            return;
        }
        match offset {
            COMMON..ISR => {
                let at = usize::try_from(offset).unwrap_or(usize::MAX);
                match self.common.write(&self.interrupt, at, data) {
                    Action::None => {}
                    Action::Activate => self.activate(),
                    Action::Reset => self.reset(),
                }
            }
            NOTIFY..MSIX_TABLE => {
                let queue = usize::try_from((offset - NOTIFY) / NOTIFY_STRIDE);
                self.notify(queue.unwrap_or(usize::MAX));
            }
            MSIX_TABLE..MSIX_PENDING => {
                let at = usize::try_from(offset - MSIX_TABLE).unwrap_or(usize::MAX);
                self.interrupt.msix().write_table(at, data);
            }
            _ => {}
        }
    }

    fn notify(&self, queue: usize) {
        if let Some(notifier) = self.notifiers.iter().find(|n| n.queue == queue) {
            notifier.signal();
        }
    }

    /// The driver is ready: validates the queues and starts the device.
    fn activate(&mut self) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        match queues::make(&self.common, &self.memory) {
            Ok((queues, notifiers)) => {
                self.notifiers = notifiers;
                self.run(queues);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn run(&mut self, queues: Vec<ActiveQueue>) {
        let activation = Activation {
            memory: self.memory.clone(),
            features: self.common.features(),
            queues,
            interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
        };
        match self.device.activate(activation) {
            Ok(()) => {
                self.phase = Phase::Running;
                self.wire_notifiers();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// The device does not work until the driver resets it.
    fn fail(&mut self, error: &(dyn std::error::Error + 'static)) {
        if !self.failed_before {
            let device = self.device.name();
            tracing::warn!(device, error, "a device did not start and needs a reset");
            self.failed_before = true;
        }
        self.unwire_notifiers();
        self.notifiers.clear();
        self.phase = Phase::Idle;
        self.interrupt.needs_reset();
    }

    /// The driver has written 0 to the status (section 2.4).
    fn reset(&mut self) {
        self.stop();
        self.phase = Phase::Idle;
        self.device.reset();
        self.common.reset();
        self.interrupt.reset();
    }

    /// Stops the device; its queues are dropped.
    fn stop(&mut self) {
        self.unwire_notifiers();
        self.notifiers.clear();
        self.device.deactivate();
    }

    /// Stops a running device and keeps its queues. What the driver writes meanwhile waits for the
    /// function's lock, or is found when the device goes on.
    pub(crate) fn pause(&mut self) {
        if matches!(self.phase, Phase::Running) {
            self.phase = Phase::Paused(self.device.deactivate());
        }
    }

    /// Starts a paused device where it stopped.
    pub(crate) fn resume(&mut self) {
        if !matches!(self.phase, Phase::Paused(_)) {
            return;
        }
        let Phase::Paused(queues) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        self.run(queues);
        // A worker may have stopped between taking a notification and serving it.
        self.notifiers.iter().for_each(Notifier::signal);
    }

    /// Lets the device use other memory from now on, of which what it used is a part. A device that
    /// runs stops for that, and goes on where it was.
    pub(crate) fn set_memory(&mut self, memory: GuestMemoryMmap) {
        let running = matches!(self.phase, Phase::Running);
        if running {
            self.pause();
        }
        self.memory = memory;
        if running {
            self.resume();
        }
    }

    /// Ends the function: the device is idle, nothing of it is known to the hypervisor any more, and
    /// it answers nothing.
    pub(crate) fn retire(&mut self) {
        self.interrupt.silence();
        self.stop();
        // The driver's life is over: what the guest sent goes to where it was sent now.
        self.device.reset();
        self.phase = Phase::Retired;
    }

    /// Registers the eventfds where the guest has put the window, or takes them back.
    fn wire_notifiers(&mut self) {
        let window = self.config.window();
        for notifier in &mut self.notifiers {
            let wanted = window.map(|base| base + NOTIFY + notifier.queue as u64 * NOTIFY_STRIDE);
            notifier.move_to(wanted, self.hypervisor.as_ref());
        }
    }

    fn unwire_notifiers(&mut self) {
        for notifier in &mut self.notifiers {
            notifier.move_to(None, self.hypervisor.as_ref());
        }
    }

    /// For a snapshot.
    #[cfg_attr(not(test), expect(dead_code, reason = "what snapshots are made of"))]
    pub(crate) fn state(&self) -> VirtioPciState {
        let paused = match &self.phase {
            Phase::Paused(queues) => queues.as_slice(),
            _ => &[],
        };
        let vectors = 0..self.common.queues().len();
        VirtioPciState {
            device: self.device.name(),
            device_state: self.device.state(),
            config: self.config.state(),
            common: self.common.clone(),
            status: self.interrupt.status(),
            config_vector: self.interrupt.config_vector(),
            queue_vectors: vectors.map(|n| self.interrupt.queue_vector(n)).collect(),
            msix: self.interrupt.msix().state(),
            queues: paused
                .iter()
                .map(|active| QueueProgress {
                    index: active.index,
                    next_avail: active.queue.next_avail(),
                    next_used: active.queue.next_used(),
                })
                .collect(),
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        if !self.is_retired() {
            self.retire();
        }
    }
}

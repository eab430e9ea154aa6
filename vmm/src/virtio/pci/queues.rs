//! From what the driver has told about its queues to queues that a device can work on, each with
//! its eventfd.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common::{CommonConfig, FEATURE_EVENT_IDX, QueueRegisters};
use crate::pci::Hypervisor;
use crate::virtio::ActiveQueue;

/// A driver's queues cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    /// Addresses out of memory or not aligned.
    #[error("queue {0} lies outside guest memory or is not aligned")]
    Registers(usize),
    /// No eventfd.
    #[error("making an event descriptor")]
    Event(#[source] std::io::Error),
}

/// A queue's eventfd and where the hypervisor watches for it.
#[derive(Debug)]
pub(super) struct Notifier {
    /// Position among the device's queues.
    pub(super) queue: usize,
    event: EventFd,
    registered: Option<u64>,
}

/// Makes each queue that the driver enabled, and its eventfd.
///
/// # Errors
///
/// [`QueueError`].
pub(super) fn make(
    common: &CommonConfig,
    memory: &GuestMemoryMmap,
) -> Result<(Vec<ActiveQueue>, Vec<Notifier>), QueueError> {
    let event_idx = common.features() & FEATURE_EVENT_IDX != 0;
    let mut queues = Vec::new();
    let mut notifiers = Vec::new();
    for (index, registers) in common.queues().iter().enumerate() {
        if !registers.enabled {
            continue;
        }
        let queue =
            build_queue(registers, event_idx, memory).ok_or(QueueError::Registers(index))?;
        let event = EventFd::new(EFD_NONBLOCK).map_err(QueueError::Event)?;
        let notify = event.try_clone().map_err(QueueError::Event)?;
        queues.push(ActiveQueue {
            index,
            queue,
            notify,
        });
        notifiers.push(Notifier {
            queue: index,
            event,
            registered: None,
        });
    }
    Ok((queues, notifiers))
}

impl Notifier {
    /// Wakes the device's worker.
    pub(super) fn signal(&self) {
        // Only a counter at its limit refuses, and then the worker is due to look anyway.
        let _ = self.event.write(1);
    }

    /// Registers the eventfd at `wanted`, or nowhere. Where registering fails (two windows over each other, say), writes exit and still arrive.
    pub(super) fn move_to(&mut self, wanted: Option<u64>, hypervisor: &dyn Hypervisor) {
        if self.registered == wanted {
            return;
        }
        if let Some(address) = self.registered.take()
            && let Err(error) = hypervisor.remove_notifier(address, &self.event)
        {
            tracing::warn!(address, %error, "a notification address could not be released");
        }
        if let Some(address) = wanted {
            match hypervisor.add_notifier(address, &self.event) {
                Ok(()) => self.registered = Some(address),
                Err(error) => tracing::debug!(address, %error, "notifications will exit"),
            }
        }
    }
}

fn build_queue(
    registers: &QueueRegisters,
    event_idx: bool,
    memory: &GuestMemoryMmap,
) -> Option<Queue> {
    let mut queue = Queue::new(registers.max_size).ok()?;
    queue.try_set_size(registers.size).ok()?;
    queue
        .try_set_desc_table_address(GuestAddress(registers.descriptors))
        .ok()?;
    queue
        .try_set_avail_ring_address(GuestAddress(registers.available))
        .ok()?;
    queue
        .try_set_used_ring_address(GuestAddress(registers.used))
        .ok()?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    queue.is_valid(memory).then_some(queue)
}

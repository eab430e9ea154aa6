//! The driver's side of a device, for unit tests and fuzz targets.
#![allow(clippy::unwrap_used, reason = "as in tests")]

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, ActiveQueue, Interrupt};

/// Longer than anything takes that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Descriptor flags (section 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Counts interrupts.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    count: Mutex<u64>,
    raised: Condvar,
    needs_reset: AtomicBool,
}

impl Interrupts {
    /// Waits until `done` returns something, looking again after each interrupt.
    pub(crate) fn wait_for<T>(&self, mut done: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut count = self.count.lock().unwrap();
        loop {
            if let Some(value) = done() {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            count = self.raised.wait_timeout(count, left).unwrap().0;
        }
    }

    pub(crate) fn count(&self) -> u64 {
        *self.count.lock().unwrap()
    }

    pub(crate) fn reset_is_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    fn raise(&self) {
        *self.count.lock().unwrap() += 1;
        self.raised.notify_all();
    }
}

impl Interrupt for Interrupts {
    fn queue(&self, _index: usize) {
        self.raise();
    }

    fn config(&self) {
        self.raise();
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise();
    }
}

/// A buffer in guest memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

impl Buffer {
    pub(crate) fn readable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: false,
        }
    }

    pub(crate) fn writable(address: u64, len: u32) -> Self {
        Self {
            address,
            len,
            writable: true,
        }
    }
}

/// A split virtqueue from the driver's side. Chains use descriptors from the one with the number
/// of their head on; the caller keeps them apart.
#[derive(Debug)]
pub(crate) struct DriverQueue {
    memory: GuestMemoryMmap,
    size: u16,
    base: u64,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    notify: EventFd,
}

impl DriverQueue {
    /// Bytes that a queue of `size` takes in guest memory, generously.
    pub(crate) const LEN: u64 = 0x4000;

    pub(crate) fn new(memory: &GuestMemoryMmap, base: u64, size: u16, event_idx: bool) -> Self {
        let zeroes = vec![0; usize::try_from(Self::LEN).unwrap()];
        memory.write_slice(&zeroes, GuestAddress(base)).unwrap();
        Self {
            memory: memory.clone(),
            size,
            base,
            next_avail: 0,
            next_used: 0,
            event_idx,
            notify: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    fn avail(&self) -> u64 {
        self.base + 0x2000
    }

    fn used(&self) -> u64 {
        self.base + 0x3000
    }

    /// The device's side.
    pub(crate) fn active(&self, index: usize) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.base))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used()))
            .unwrap();
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        ActiveQueue {
            index,
            queue,
            notify: self.notify.try_clone().unwrap(),
        }
    }

    pub(crate) fn write_descriptor(
        &self,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        self.write_descriptor_at(self.base, index, address, len, flags, next);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of a descriptor, and where it is"
    )]
    pub(crate) fn write_descriptor_at(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + u64::from(index) * 16, &bytes);
    }

    /// Makes a chain of `buffers` available, in the descriptors from `head` on.
    pub(crate) fn add(&mut self, head: u16, buffers: &[Buffer]) {
        for (position, buffer) in (head..).zip(buffers) {
            let last = usize::from(position - head) + 1 == buffers.len();
            let flags = if buffer.writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.write_descriptor(position, buffer.address, buffer.len, flags, position + 1);
        }
        self.offer(head);
    }

    /// Makes the chain that starts at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = self.avail() + 4 + u64::from(self.next_avail % self.size) * 2;
        self.put(slot, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_available(self.next_avail);
    }

    /// Says that `index` chains were made available so far.
    pub(crate) fn set_available(&self, index: u16) {
        let address = GuestAddress(self.avail() + 2);
        self.memory
            .store(index.to_le(), address, Ordering::Release)
            .unwrap();
    }

    pub(crate) fn kick(&self) {
        fence(Ordering::SeqCst);
        self.notify.write(1).unwrap();
    }

    /// The next chain that the device has given back: its head and how much was written. Asks for
    /// an interrupt when there is none.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.next_used {
            if !self.event_idx {
                return None;
            }
            let used_event = GuestAddress(self.avail() + 4 + u64::from(self.size) * 2);
            self.memory
                .store(self.next_used.to_le(), used_event, Ordering::Release)
                .unwrap();
            fence(Ordering::SeqCst);
            if self.used_index() == self.next_used {
                return None;
            }
        }
        let slot = self.used() + 4 + u64::from(self.next_used % self.size) * 8;
        let (head, len): (u32, u32) = (self.get(slot), self.get(slot + 4));
        self.next_used = self.next_used.wrapping_add(1);
        Some((u16::try_from(head).unwrap(), len))
    }

    /// Waits until the device has given everything back or needs a reset; not for long, since a
    /// device may have been made to overwrite its own queue.
    pub(crate) fn settle(&self, interrupts: &Interrupts) {
        for _ in 0..20 {
            if interrupts.reset_is_needed() || self.used_index() == self.next_avail {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn used_index(&self) -> u16 {
        let address = GuestAddress(self.used() + 2);
        u16::from_le(self.memory.load(address, Ordering::Acquire).unwrap())
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    fn get(&self, address: u64) -> u32 {
        u32::from_le(self.memory.read_obj(GuestAddress(address)).unwrap())
    }
}

/// `len` bytes of guest memory from address 0 on.
pub(crate) fn guest_memory(len: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap()
}

/// An activation of `queues`, in order.
pub(crate) fn activation(
    memory: &GuestMemoryMmap,
    queues: &[&DriverQueue],
    interrupts: &Arc<Interrupts>,
) -> Activation {
    Activation {
        memory: memory.clone(),
        features: 0,
        queues: queues
            .iter()
            .enumerate()
            .map(|(index, queue)| queue.active(index))
            .collect(),
        interrupt: Arc::clone(interrupts) as Arc<dyn Interrupt>,
    }
}

/// A descriptor: address, length, flags and next.
pub(crate) type AnyDescriptor = (u64, u32, u16, u16);

/// Descriptors and heads for [`offer_anything`]: their addresses are below `tables`, where the queues
/// are, or in the two pages at `data`, or anywhere.
#[cfg(test)]
pub(crate) fn any_chains(
    tables: u64,
    data: u64,
) -> impl proptest::strategy::Strategy<Value = (Vec<AnyDescriptor>, Vec<u16>)> {
    use proptest::prelude::*;
    let descriptor = (
        prop_oneof![0..tables, data..data + 8192, any::<u64>()],
        prop_oneof![0_u32..64, 0_u32..9000, any::<u32>()],
        0_u16..8,
        prop_oneof![0_u16..16, any::<u16>()],
    );
    let heads = prop_oneof![0_u16..16, any::<u16>()];
    (
        prop::collection::vec(descriptor, 1..16),
        prop::collection::vec(heads, 1..20),
    )
}

/// Gives a device descriptors and heads that need not make sense.
pub(crate) fn offer_anything(
    queue: &mut DriverQueue,
    descriptors: &[AnyDescriptor],
    heads: &[u16],
) {
    for (index, (address, len, flags, next)) in (0..).zip(descriptors) {
        queue.write_descriptor(index, *address, *len, *flags, *next);
    }
    for head in heads {
        queue.offer(*head);
    }
    queue.kick();
}

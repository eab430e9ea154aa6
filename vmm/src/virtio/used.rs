//! Giving chains back so that the driver sees several at once, and interrupting it for a batch.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{ChainError, give_back};

/// Where the elements of the used ring begin, and the length of one (virtio 1.2 section 2.7.8).
const USED_ELEMENTS: u64 = 4;
const USED_ELEMENT_LEN: u64 = 8;

/// Where the elements of the available ring begin, and the length of one (section 2.7.6).
const AVAILABLE_ELEMENTS: u64 = 4;
const AVAILABLE_ELEMENT_LEN: u64 = 2;

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;

/// A chain's head and how many bytes were written to it.
pub(crate) type Used = (u16, u32);

/// Gives chains back in one step: a driver that looks in the middle of it sees none of them.
///
/// # Errors
///
/// [`ChainError::Queue`] when the used ring is not in memory.
pub(crate) fn give_back_together(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    used: &[Used],
) -> Result<(), ChainError> {
    let Some(((head, written), before)) = used.split_last() else {
        return Ok(());
    };
    let size = u64::from(queue.size());
    let mut next = queue.next_used();
    for (head, written) in before {
        let slot = u64::from(next) % size;
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
        element[4..].copy_from_slice(&written.to_le_bytes());
        let at = GuestAddress(queue.used_ring() + USED_ELEMENTS + slot * USED_ELEMENT_LEN);
        memory
            .write_slice(&element, at)
            .map_err(|error| ChainError::Queue(virtio_queue::Error::GuestMemory(error)))?;
        next = next.wrapping_add(1);
    }
    // The last one's index, which is written after its element, publishes all of them.
    queue.set_next_used(next);
    give_back(queue, memory, *head, *written)
}

/// Whether the driver wants an interrupt for what was given back since it was last asked.
///
/// The queue's own answer counts calls, and [`give_back_together`] makes one for many chains.
#[derive(Debug)]
pub(crate) struct Notifications {
    /// The used index when the driver was last asked.
    asked_at: u16,
}

impl Notifications {
    /// From the queue as it is on.
    pub(crate) fn of(queue: &Queue) -> Self {
        Self {
            asked_at: queue.next_used(),
        }
    }

    /// Asks the driver (section 2.7.10).
    ///
    /// # Errors
    ///
    /// [`ChainError::Queue`] when the available ring is not in memory.
    pub(crate) fn wanted(
        &mut self,
        queue: &Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, ChainError> {
        let (before, now) = (self.asked_at, queue.next_used());
        self.asked_at = now;
        if before == now {
            return Ok(false);
        }
        // The index that publishes the chains is written before the driver's wish is read.
        fence(Ordering::SeqCst);
        // Either an index behind the ring's elements, or a flag in its header.
        let by_index = queue.event_idx_enabled();
        let at = match by_index {
            true => AVAILABLE_ELEMENTS + u64::from(queue.size()) * AVAILABLE_ELEMENT_LEN,
            false => 0,
        };
        let wish: u16 = memory
            .load(GuestAddress(queue.avail_ring() + at), Ordering::Relaxed)
            .map_err(|error| ChainError::Queue(virtio_queue::Error::GuestMemory(error)))?;
        let wish = u16::from_le(wish);
        Ok(match by_index {
            true => now.wrapping_sub(wish).wrapping_sub(1) < now.wrapping_sub(before),
            false => wish & NO_INTERRUPT == 0,
        })
    }
}

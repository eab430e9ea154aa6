//! Descriptor chains as a driver makes them available (virtio 1.2 sections 2.7.5 and 2.7.6), which
//! is to say: untrusted.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use super::segments::Segments;

/// The driver broke the rules of virtqueues. The device needs a reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// The available ring promises more chains than there are descriptors, or is not in memory.
    #[error("the virtqueue is broken: {0}")]
    Queue(virtio_queue::Error),
    /// The head is not a descriptor, or points to an indirect table that is none.
    #[error("a descriptor chain has no descriptor")]
    Empty,
    /// Longer than the queue (section 2.7.5.3.1), or a loop.
    #[error("a descriptor chain is longer than its queue")]
    TooLong,
    /// The last descriptor promises another one, which is not there.
    #[error("a descriptor chain leads to no descriptor")]
    Unfinished,
    /// A device-readable descriptor after a device-writable one (section 2.7.4.2).
    #[error("a readable descriptor comes after a writable one")]
    Order,
    /// A buffer that is not in guest memory.
    #[error("{len} bytes at {address:#x} are not in guest memory")]
    Memory {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// A chain whose structure was checked; what is in it was not.
#[derive(Debug)]
pub(crate) struct Chain<'m> {
    /// Names the chain in the used ring.
    pub(crate) head: u16,
    /// What the driver wrote for the device.
    pub(crate) readable: Segments<'m>,
    /// Where the device may write.
    pub(crate) writable: Segments<'m>,
}

impl<'m> Chain<'m> {
    /// Takes the next available chain off the queue; `None` when there is none.
    ///
    /// # Errors
    ///
    /// [`ChainError`] when the driver broke the rules.
    pub(crate) fn pop(
        queue: &mut Queue,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<Self>, ChainError> {
        let most = usize::from(queue.size());
        let mut available = queue.iter(memory).map_err(ChainError::Queue)?;
        let Some(mut descriptors) = available.next() else {
            return Ok(None);
        };
        let mut chain = Self {
            head: descriptors.head_index(),
            readable: Segments::default(),
            writable: Segments::default(),
        };
        let mut count = 0;
        let mut goes_on = None;
        for descriptor in descriptors.by_ref() {
            count += 1;
            if count > most {
                return Err(ChainError::TooLong);
            }
            goes_on = Some(descriptor.has_next());
            let segments = if descriptor.is_write_only() {
                &mut chain.writable
            } else if chain.writable.len() == 0 {
                &mut chain.readable
            } else {
                return Err(ChainError::Order);
            };
            add(segments, memory, descriptor.addr(), descriptor.len())?;
        }
        match goes_on {
            // A queue's own table is walked for as many steps as it has descriptors.
            Some(true) if count == most => Err(ChainError::TooLong),
            Some(true) => Err(ChainError::Unfinished),
            Some(false) => Ok(Some(chain)),
            None => Err(ChainError::Empty),
        }
    }
}

fn add<'m>(
    segments: &mut Segments<'m>,
    memory: &'m GuestMemoryMmap,
    address: GuestAddress,
    len: u32,
) -> Result<(), ChainError> {
    let bytes = usize::try_from(len).expect("a usize holds 32 bits");
    for piece in memory.get_slices(address, bytes) {
        let piece = piece.map_err(|_outside| ChainError::Memory {
            address: address.0,
            len,
        })?;
        segments.push(piece);
    }
    Ok(())
}

/// Gives a chain back to the driver.
///
/// # Errors
///
/// [`ChainError::Queue`] when the used ring is not in memory.
pub(crate) fn give_back(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    head: u16,
    written: u32,
) -> Result<(), ChainError> {
    queue
        .add_used(memory, head, written)
        .map_err(ChainError::Queue)
}

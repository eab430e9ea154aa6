//! Memory that the guest gets beside what it was built with, and gives back, while it runs.
//!
//! Nothing of it is there until the first resize: no device, no memory slot, no addresses. Then
//! virtio-mem ([`crate::virtio::mem`]) has all addresses behind RAM, of which as many are usable as the
//! guest was ever asked to have. They become so in *extents*: memory of this process, made known to
//! every device, and to KVM as a slot of its own. An extent stays: what the guest gives back of it goes
//! to the host by blocks.
//!
//! The control thread does all of this. What the machine was built with is never taken from the guest.

use super::kvm::KvmError;
use super::layout::{self, MIB, Range};
use super::memory::MemoryError;
use super::windows::SLOTS_END;
use super::{AddError, Machine};
use crate::pci::bus;
use crate::virtio::mem::{BLOCK_SIZE, Mem, MemHandle};

/// The first of the extents' memory slots.
const FIRST_SLOT: u32 = SLOTS_END;

/// The least that an extent adds doubles after so many of them. So a guest that grows by little each
/// time never has more than some 70 slots, and one that grows once has no more than it asked for.
const EXTENTS_OF_ONE_SIZE: u32 = 8;

/// The guest cannot be asked to have so much memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrowthError {
    /// There are no more addresses.
    #[error("{0} MiB beside its RAM are more than a guest can have ({1} MiB)")]
    Size(u32, u64),
    /// No room for the device.
    #[error(transparent)]
    Add(#[from] AddError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// What the machine has of it after the first resize.
#[derive(Debug)]
pub(crate) struct Growth {
    pub(super) handle: MemHandle,
    extents: u32,
}

impl Machine {
    /// Asks the guest to have so much memory beside its RAM. It finds the device when it rescans the
    /// bus, and takes its time.
    ///
    /// # Errors
    ///
    /// [`GrowthError`]; the guest is asked for what it was asked before.
    pub(crate) fn resize_memory(&mut self, memory_mib: u32) -> Result<(), GrowthError> {
        let range = layout::growth_range(self.memory_mib);
        let wanted = (u64::from(memory_mib) * MIB).next_multiple_of(BLOCK_SIZE);
        if wanted > range.size {
            return Err(GrowthError::Size(memory_mib, range.size / MIB));
        }
        let handle = match &self.growth {
            Some(growth) => growth.handle.clone(),
            None if wanted == 0 => return Ok(()),
            None => {
                let address = self.pci.free_address().map_err(AddError::from)?;
                let (device, handle) = Mem::new(range);
                self.add_function(address, Box::new(device));
                tracing::info!(%address, "memory device added");
                let growth = Growth {
                    handle: handle.clone(),
                    extents: 0,
                };
                self.growth = Some(growth);
                handle
            }
        };
        if wanted > handle.usable() {
            self.extend_memory(wanted)?;
        }
        handle.request(wanted);
        tracing::info!(memory_mib, "the guest is asked for another size");
        Ok(())
    }

    /// The memory beside its RAM, once there was a resize.
    pub(crate) fn growth(&self) -> Option<&MemHandle> {
        self.growth.as_ref().map(|growth| &growth.handle)
    }

    /// Makes `wanted` bytes of the device's addresses usable.
    fn extend_memory(&mut self, wanted: u64) -> Result<(), GrowthError> {
        let Some(growth) = &mut self.growth else {
            return Ok(());
        };
        let range = growth.handle.range();
        let extent = next_extent(range, growth.handle.usable(), wanted, growth.extents);
        let (memory, region) = super::memory::extended(&self.memory, extent)?;
        self.vm
            .register_extent(FIRST_SLOT + growth.extents, &region)?;
        // Before the guest may: its drivers lay buffers there at once.
        for function in self.pci.functions() {
            bus::lock(&function).set_memory(memory.clone());
        }
        self.memory = memory;
        growth.extents += 1;
        growth.handle.extend(region);
        Ok(())
    }
}

/// The addresses to add when `usable` bytes are and `wanted` bytes are to be, after so many extents:
/// memory blocks of Linux, which it adds as a whole.
fn next_extent(range: Range, usable: u64, wanted: u64, extents: u32) -> Range {
    let block = match range.start > layout::LARGE_BLOCKS_FROM {
        true => layout::MEMORY_BLOCK_MAX,
        false => layout::MEMORY_BLOCK_MIN,
    };
    let least = block << (extents / EXTENTS_OF_ONE_SIZE);
    let size = (wanted - usable).max(least).next_multiple_of(block);
    Range {
        start: range.start + usable,
        size: size.min(range.size - usable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * MIB;

    #[test]
    fn an_extent_is_as_large_as_is_wanted_in_blocks_that_linux_adds() {
        let range = layout::growth_range(256);
        let first = next_extent(range, 0, 300 * MIB, 0);
        assert_eq!((first.start, first.size), (4 * GIB, 384 * MIB));
        let second = next_extent(range, first.size, first.size + BLOCK_SIZE, 1);
        assert_eq!((second.start, second.size), (first.end(), 128 * MIB));
        let large = layout::growth_range(100 * 1024);
        assert_eq!(next_extent(large, 0, 2 * MIB, 0).size, 2 * GIB);
    }

    #[test]
    fn a_guest_that_grows_by_a_block_each_time_has_few_slots() {
        for memory_mib in [256, 65 * 1024] {
            let range = layout::growth_range(memory_mib);
            let (mut usable, mut extents) = (0, 0);
            while usable < range.size {
                let extent = next_extent(range, usable, usable + BLOCK_SIZE, extents);
                assert_eq!(extent.start, range.start + usable);
                assert!(extent.size > 0 && extent.end() <= range.end());
                usable += extent.size;
                extents += 1;
            }
            assert!(extents <= 70, "{extents}");
        }
    }
}

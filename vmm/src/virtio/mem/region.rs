//! The device's addresses, which of their blocks are plugged, and the host's memory behind them.
#![expect(unsafe_code, reason = "memory is given back to the host")]

use std::io;
use std::sync::Arc;

use serde::Serialize;
use vm_memory::{Address, GuestMemoryRegion, GuestRegionMmap};

use super::BLOCK_SIZE;
use super::request::{Answer, Blocks, BlocksState, Request};
use crate::machine::layout::Range;

/// Bits in a word of the bitmap.
const WORD: usize = 64;

/// Blocks, and what the driver may do with them (virtio 1.3 section 5.15.6).
///
/// ```text
///  addresses ├──────────── usable ────────────┤            not usable           │
///            │ plugged, and blocks that are not │ no memory of the host, no slot │
///            start                     + usable                           + size
/// ```
#[derive(Debug)]
pub(super) struct Region {
    range: Range,
    /// What the extents have memory for, in bytes from the start. It does not shrink.
    usable: u64,
    /// What the driver is asked to have plugged, in bytes.
    requested: u64,
    /// One bit for each block.
    plugged: Vec<u64>,
    plugged_blocks: u64,
    /// In order, and without a gap.
    extents: Vec<Arc<GuestRegionMmap>>,
}

/// What a snapshot keeps of the region.
#[derive(Debug, Serialize)]
pub(super) struct RegionState {
    address: u64,
    size_bytes: u64,
    usable_bytes: u64,
    requested_bytes: u64,
    /// Words of 64 blocks, from the lowest bit on, as far as blocks are usable.
    plugged: Vec<u64>,
}

impl Region {
    /// Nothing is usable yet. The range is made of whole blocks.
    pub(super) fn new(range: Range) -> Self {
        let blocks = index(range.size / BLOCK_SIZE);
        Self {
            range,
            usable: 0,
            requested: 0,
            plugged: vec![0; blocks.div_ceil(WORD)],
            plugged_blocks: 0,
            extents: Vec::new(),
        }
    }

    /// All of its addresses.
    pub(super) fn range(&self) -> Range {
        self.range
    }

    /// See the drawing. In bytes.
    pub(super) fn usable(&self) -> u64 {
        self.usable
    }

    /// What the driver is asked to have plugged, in bytes.
    pub(super) fn requested(&self) -> u64 {
        self.requested
    }

    /// What it has plugged, in bytes.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged_blocks * BLOCK_SIZE
    }

    /// Makes the addresses of `extent` usable, which begin where the usable ones end.
    pub(super) fn extend(&mut self, extent: Arc<GuestRegionMmap>) {
        let start = extent.start_addr().raw_value();
        debug_assert_eq!(start, self.range.start + self.usable, "there is no gap");
        debug_assert!(extent.len().is_multiple_of(BLOCK_SIZE), "whole blocks");
        self.usable += extent.len();
        debug_assert!(self.usable <= self.range.size, "inside the range");
        self.extents.push(extent);
    }

    /// Asks for so many bytes, whole blocks that are usable.
    pub(super) fn request(&mut self, bytes: u64) {
        debug_assert!(bytes.is_multiple_of(BLOCK_SIZE) && bytes <= self.usable);
        self.requested = bytes;
    }

    /// Does what the driver asks for.
    pub(super) fn serve(&mut self, request: Request) -> Answer {
        match request {
            Request::Plug(blocks) => self.plug(blocks),
            Request::Unplug(blocks) => self.unplug(blocks),
            Request::UnplugAll => self.unplug_all(),
            Request::State(blocks) => self.state_of(blocks),
        }
    }

    fn plug(&mut self, blocks: Blocks) -> Answer {
        let Some(blocks) = self.check(blocks) else {
            return Answer::Error;
        };
        if blocks.clone().any(|block| self.is_plugged(block)) {
            return Answer::Error;
        }
        let more = blocks.len() as u64 * BLOCK_SIZE;
        if self.plugged() + more > self.requested {
            return Answer::Refused;
        }
        self.set(blocks, true);
        Answer::Done
    }

    fn unplug(&mut self, blocks: Blocks) -> Answer {
        let Some(blocks) = self.check(blocks) else {
            return Answer::Error;
        };
        if !blocks.clone().all(|block| self.is_plugged(block)) {
            return Answer::Error;
        }
        let offset = blocks.start as u64 * BLOCK_SIZE;
        if let Err(error) = self.discard(offset, blocks.len() as u64 * BLOCK_SIZE) {
            tracing::warn!(%error, "memory of the guest cannot be given back");
            return Answer::Busy;
        }
        self.set(blocks, false);
        Answer::Done
    }

    fn unplug_all(&mut self) -> Answer {
        if let Err(error) = self.discard(0, self.usable) {
            tracing::warn!(%error, "memory of the guest cannot be given back");
            return Answer::Busy;
        }
        self.plugged.fill(0);
        self.plugged_blocks = 0;
        Answer::Done
    }

    fn state_of(&self, blocks: Blocks) -> Answer {
        let Some(blocks) = self.check(blocks) else {
            return Answer::Error;
        };
        let (mut some, mut all) = (false, true);
        for block in blocks {
            let plugged = self.is_plugged(block);
            some |= plugged;
            all &= plugged;
        }
        Answer::State(match (some, all) {
            (_, true) => BlocksState::Plugged,
            (false, _) => BlocksState::Unplugged,
            (true, false) => BlocksState::Mixed,
        })
    }

    /// The numbers of blocks that are usable; `None` if some are not, or it is not even blocks.
    fn check(&self, blocks: Blocks) -> Option<std::ops::Range<usize>> {
        let offset = blocks.address.checked_sub(self.range.start)?;
        let length = u64::from(blocks.count) * BLOCK_SIZE;
        let end = offset.checked_add(length)?;
        if length == 0 || !offset.is_multiple_of(BLOCK_SIZE) || end > self.usable {
            return None;
        }
        Some(index(offset / BLOCK_SIZE)..index(end / BLOCK_SIZE))
    }

    fn is_plugged(&self, block: usize) -> bool {
        self.plugged[block / WORD] & 1 << (block % WORD) != 0
    }

    /// Notes blocks of which each was the other way before.
    fn set(&mut self, blocks: std::ops::Range<usize>, plugged: bool) {
        let count = blocks.len() as u64;
        for block in blocks {
            self.plugged[block / WORD] ^= 1 << (block % WORD);
        }
        match plugged {
            true => self.plugged_blocks += count,
            false => self.plugged_blocks -= count,
        }
    }

    /// Gives the host back what is behind `length` bytes from `offset` on; the guest finds zeroes
    /// there the next time.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let (from, to) = (
            self.range.start + offset,
            self.range.start + offset + length,
        );
        for extent in &self.extents {
            let start = extent.start_addr().raw_value();
            let first = from.max(start);
            let end = to.min(start + extent.len());
            if first >= end {
                continue;
            }
            let at = extent.as_ptr().wrapping_add(index(first - start));
            // SAFETY: a part of a mapping of private memory, to which no reference exists. It stays
            // mapped; only what is in it is lost, which belongs to the guest.
            let result =
                unsafe { libc::madvise(at.cast(), index(end - first), libc::MADV_DONTNEED) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// For a snapshot.
    pub(super) fn state(&self) -> RegionState {
        let words = index(self.usable / BLOCK_SIZE).div_ceil(WORD);
        RegionState {
            address: self.range.start,
            size_bytes: self.range.size,
            usable_bytes: self.usable,
            requested_bytes: self.requested,
            plugged: self.plugged[..words].to_vec(),
        }
    }
}

/// Addresses of a guest fit in those of its VMM.
fn index(number: u64) -> usize {
    usize::try_from(number).expect("a usize has 64 bits")
}

#[cfg(test)]
pub(super) mod testing {
    /// Notes which pages from `host` on are in memory (`mincore(2)`).
    pub(in super::super) fn mincore(host: *mut u8, pages: &mut [u8]) {
        let length = pages.len() * 4096;
        // SAFETY: the kernel writes a byte for each page, for which there is room, and touches none.
        let result = unsafe { libc::mincore(host.cast(), length, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
    }
}

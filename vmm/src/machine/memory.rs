//! Guest RAM: private anonymous memory, into which files can be mapped privately.
//!
//! A page of a mapped file costs nothing until the guest touches it, and is shared with every
//! other VM of this host that maps the same file until the guest writes to it.
#![expect(unsafe_code, reason = "mmap over a part of guest RAM")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use super::layout::{self, PAGE_SIZE};

/// Guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// The size is out of range.
    #[error(
        "{0} MiB of memory is out of range ({min} to {max})",
        min = layout::MEMORY_MIB_MIN,
        max = layout::MEMORY_MIB_MAX
    )]
    Size(u32),
    /// The kernel refused the mapping.
    #[error("mapping {size} bytes of guest memory at {address:#x}")]
    Map {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        size: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A range is not in RAM, or not made of whole pages.
    #[error("{size} bytes at {address:#x} are not whole pages of guest memory")]
    Range {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        size: u64,
    },
}

/// Reserves address space for `memory_mib` of RAM. No page is touched.
///
/// # Errors
///
/// [`MemoryError::Size`] and [`MemoryError::Map`].
pub(crate) fn allocate(memory_mib: u32) -> Result<GuestMemoryMmap, MemoryError> {
    if !(layout::MEMORY_MIB_MIN..=layout::MEMORY_MIB_MAX).contains(&memory_mib) {
        return Err(MemoryError::Size(memory_mib));
    }
    let mut regions = Vec::new();
    for range in layout::ram_ranges(memory_mib) {
        let failed = |source| MemoryError::Map {
            address: range.start,
            size: range.size,
            source,
        };
        let size = usize::try_from(range.size).map_err(|e| failed(io::Error::other(e)))?;
        let mapping = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|e| failed(io::Error::other(e)))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
            .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EOVERFLOW)))?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Map {
        address: 0,
        size: u64::from(memory_mib) * layout::MIB,
        source: io::Error::other(e),
    })
}

/// Maps `size` bytes of `file` from `offset` privately over guest RAM at `address`; what was there
/// is gone. All three are multiples of the page size. A last page that the file does not fill reads
/// as zeros behind its end.
///
/// # Errors
///
/// [`MemoryError::Range`] and [`MemoryError::Map`].
pub(crate) fn map_file(
    memory: &GuestMemoryMmap,
    address: u64,
    file: &File,
    offset: u64,
    size: u64,
) -> Result<(), MemoryError> {
    let out_of_range = || MemoryError::Range { address, size };
    if size == 0 || [address, offset, size].iter().any(|n| n % PAGE_SIZE != 0) {
        return Err(out_of_range());
    }
    let region = memory
        .find_region(GuestAddress(address))
        .ok_or_else(out_of_range)?;
    let start = region
        .to_region_addr(GuestAddress(address))
        .ok_or_else(out_of_range)?;
    if size > region.len() - start.raw_value() {
        return Err(out_of_range());
    }
    let host = memory
        .get_host_address(GuestAddress(address))
        .ok()
        .ok_or_else(out_of_range)?;
    let length = usize::try_from(size).ok().ok_or_else(out_of_range)?;
    let file_offset = libc::off_t::try_from(offset)
        .ok()
        .ok_or_else(out_of_range)?;
    // SAFETY: `host..host + length` lies inside one region of `memory`, which owns that mapping and
    // is only accessed through volatile accesses; replacing pages of it with other pages of the
    // same protection keeps every such access valid.
    let mapped = unsafe {
        libc::mmap(
            host.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            file_offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(MemoryError::Map {
            address,
            size,
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn allocate_out_of_range_returns_error() {
        for mib in [0, layout::MEMORY_MIB_MIN - 1, layout::MEMORY_MIB_MAX + 1] {
            assert!(matches!(allocate(mib), Err(MemoryError::Size(_))));
        }
    }

    #[test]
    fn mapped_file_is_read_at_its_address_and_writes_stay_private() {
        let memory = allocate(64).unwrap();
        let mut file = file_of(&[7; 5000]);
        map_file(&memory, 0x10_0000, &file, 4096, 4096).unwrap();
        let read: u8 = memory.read_obj(GuestAddress(0x10_0000)).unwrap();
        let behind: u8 = memory.read_obj(GuestAddress(0x10_0000 + 904)).unwrap();
        assert_eq!((read, behind), (7, 0));

        memory.write_obj(9_u8, GuestAddress(0x10_0000)).unwrap();
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 5000]);
    }

    #[test]
    fn map_file_over_the_end_of_ram_returns_error() {
        let memory = allocate(64).unwrap();
        let file = file_of(&[7; 8192]);
        let last_page = 64 * layout::MIB - PAGE_SIZE;
        map_file(&memory, last_page, &file, 0, 4096).unwrap();
        assert!(map_file(&memory, last_page, &file, 0, 8192).is_err());
        assert!(map_file(&memory, last_page + 4096, &file, 0, 4096).is_err());
        assert!(map_file(&memory, 1, &file, 0, 4096).is_err());
        assert!(map_file(&memory, 0, &file, 0, 0).is_err());
    }
}

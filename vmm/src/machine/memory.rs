//! Guest RAM: private anonymous memory in huge pages where the host has them, but for the parts of
//! which a start touches a few pages only ([`layout::sparse_ranges`]).
//!
//! The kernel is read into it. Linux patches its own text all over while it boots (returns,
//! alternatives): of a mapped kernel five pages in six took three faults each (read, write, and read
//! again), which together were half of the time to init. Read into huge pages they take a handful.
//!
//! An initramfs is mapped, copy on write: nobody writes to it (the guest is told not to free it,
//! which would poison it), so all guests of a host share the page cache's copy and nobody fills pages
//! with it.
#![expect(unsafe_code, reason = "files in guest RAM, and advice about it")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address as _, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion as _,
    GuestRegionMmap, MmapRegion,
};

use super::layout::{self, Range};

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
    /// A file could not be read, or ended too early.
    #[error("reading a file into guest memory")]
    Read(#[source] io::Error),
    /// A file could not be mapped.
    #[error("mapping a file into guest memory")]
    MapFile(#[source] io::Error),
    /// A range is not in RAM.
    #[error("{size} bytes at {address:#x} are not guest memory")]
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
    let ranges = layout::ram_ranges(memory_mib);
    let regions: Result<Vec<_>, _> = ranges.into_iter().map(region).collect();
    GuestMemoryMmap::from_regions(regions?).map_err(|e| MemoryError::Map {
        address: 0,
        size: u64::from(memory_mib) * layout::MIB,
        source: io::Error::other(e),
    })
}

/// `memory`, and RAM at `range` beside it. No page is touched. What was there stays where it is in
/// this process.
///
/// # Errors
///
/// [`MemoryError::Map`], also when there is memory in the range.
pub(crate) fn extended(
    memory: &GuestMemoryMmap,
    range: Range,
) -> Result<(GuestMemoryMmap, Arc<GuestRegionMmap>), MemoryError> {
    let extent = Arc::new(region(range)?);
    let extended = memory.insert_region(Arc::clone(&extent));
    let extended = extended.map_err(|e| MemoryError::Map {
        address: range.start,
        size: range.size,
        source: io::Error::other(e),
    })?;
    Ok((extended, extent))
}

/// RAM at `range`.
fn region(range: Range) -> Result<GuestRegionMmap, MemoryError> {
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
    advise(&mapping, 0, mapping.size(), libc::MADV_HUGEPAGE);
    GuestRegionMmap::new(mapping, GuestAddress(range.start))
        .ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EOVERFLOW)))
}

/// Has the part of `range` that is RAM, and that nothing has touched yet, in small pages.
pub(crate) fn prefer_small_pages(memory: &GuestMemoryMmap, range: Range) {
    for region in memory.iter() {
        let ram = Range {
            start: region.start_addr().raw_value(),
            size: region.len(),
        };
        let Some(part) = range.intersection(ram) else {
            continue;
        };
        let within = usize::try_from(part.start - ram.start).ok();
        if let Some((offset, length)) = within.zip(usize::try_from(part.size).ok()) {
            advise(region, offset, length, libc::MADV_NOHUGEPAGE);
        }
    }
}

/// Asks for pages of one kind. Huge ones mean fewer faults in the guest, and shorter page walks; a
/// host without them is no worse off than before.
fn advise(mapping: &MmapRegion, offset: usize, length: usize, advice: libc::c_int) {
    let start = mapping.as_ptr().wrapping_add(offset);
    // SAFETY: advice about a part of a mapping of its own, which changes nothing that the program can
    // see; the kernel refuses what is not mapped.
    if unsafe { libc::madvise(start.cast(), length, advice) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "guest memory in pages of another size");
    }
}

/// Reads `size` bytes of `file` from `offset` into guest RAM at `address`, without moving the file's
/// position, which other processes may share.
///
/// # Errors
///
/// [`MemoryError::Range`] when that is not all RAM, [`MemoryError::Read`].
pub(crate) fn read_file(
    memory: &GuestMemoryMmap,
    address: u64,
    file: &File,
    offset: u64,
    size: u64,
) -> Result<(), MemoryError> {
    let out_of_range = || MemoryError::Range { address, size };
    let length = usize::try_from(size).ok().ok_or_else(out_of_range)?;
    let slice = memory
        .get_slice(GuestAddress(address), length)
        .ok()
        .ok_or_else(out_of_range)?;
    let mut done = 0;
    while done < length {
        let rest = slice.offset(done).ok().ok_or_else(out_of_range)?;
        let at = libc::off_t::try_from(offset + done as u64)
            .ok()
            .ok_or_else(out_of_range)?;
        let target = rest.ptr_guard_mut();
        // SAFETY: the guard keeps `rest.len()` bytes of guest RAM mapped for writing, to which no
        // reference exists.
        let read = unsafe { libc::pread(file.as_raw_fd(), target.as_ptr().cast(), rest.len(), at) };
        match usize::try_from(read) {
            Ok(0) => return Err(MemoryError::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => done += read,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(MemoryError::Read(error)),
            },
        }
    }
    Ok(())
}

/// Puts the first `size` bytes of `file` in the place of guest RAM at `address`, a page's beginning,
/// to the end of their last page. The guest's writes stay its own.
///
/// The file must stay as long as it is: the guest ends with an error at a page that is gone. Files
/// that are replaced (`rename(2)`), as package managers do, stay.
///
/// # Errors
///
/// [`MemoryError::Range`] when that is not all RAM or does not begin a page, [`MemoryError::Read`]
/// when the file is shorter, [`MemoryError::MapFile`].
pub(crate) fn map_file(
    memory: &GuestMemoryMmap,
    address: u64,
    file: &File,
    size: u64,
) -> Result<(), MemoryError> {
    let out_of_range = || MemoryError::Range { address, size };
    let length = size
        .checked_next_multiple_of(layout::PAGE_SIZE)
        .and_then(|length| usize::try_from(length).ok())
        .filter(|_| address.is_multiple_of(layout::PAGE_SIZE))
        .ok_or_else(out_of_range)?;
    let slice = memory
        .get_slice(GuestAddress(address), length)
        .ok()
        .ok_or_else(out_of_range)?;
    if file.metadata().map_err(MemoryError::Read)?.len() < size {
        return Err(MemoryError::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    let guard = slice.ptr_guard_mut();
    let target = guard.as_ptr().cast::<libc::c_void>();
    // SAFETY: the slice is `length` bytes of this guest's RAM, whole pages, to which no reference
    // exists. They stay mapped, readable and writable, until the guest's memory is unmapped as a
    // whole; only what backs them changes.
    let mapped = unsafe {
        libc::mmap(
            target,
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(MemoryError::MapFile(io::Error::last_os_error()));
    }
    // The guest reads all of it: one call instead of a fault for each few pages. Hosts before Linux
    // 5.14 know no such advice, and take the faults.
    // SAFETY: advice about the mapping just made, which changes nothing that the program can see.
    if unsafe { libc::madvise(target, length, libc::MADV_POPULATE_READ) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "the initramfs is not mapped ahead");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

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
    fn read_file_copies_the_bytes_and_leaves_the_files_position() {
        let memory = allocate(64).unwrap();
        let mut file = file_of(&[7; 5000]);
        file.rewind().unwrap();
        read_file(&memory, 0x10_0001, &file, 4990, 10).unwrap();
        let mut read = [0; 11];
        memory
            .read_slice(&mut read, GuestAddress(0x10_0001))
            .unwrap();
        assert_eq!(read, [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
        assert_eq!(file.stream_position().unwrap(), 0);
    }

    #[test]
    fn read_file_over_the_end_of_the_file_or_of_ram_returns_error() {
        let memory = allocate(64).unwrap();
        let file = file_of(&[7; 8192]);
        let end = 64 * layout::MIB;
        assert!(read_file(&memory, end - 4096, &file, 0, 4096).is_ok());
        assert!(matches!(
            read_file(&memory, end - 4096, &file, 0, 4097),
            Err(MemoryError::Range { .. })
        ));
        assert!(matches!(
            read_file(&memory, 0, &file, 4096, 4097),
            Err(MemoryError::Read(_))
        ));
        assert!(read_file(&memory, u64::MAX, &file, 0, 1).is_err());
        assert!(read_file(&memory, 0, &file, u64::MAX / 2, 1).is_err());
    }

    #[test]
    fn a_mapped_file_is_seen_in_ram_and_not_changed_by_writes_to_it() {
        let memory = allocate(64).unwrap();
        memory
            .write_slice(&[9; 3 * 4096], GuestAddress(0x10_0000))
            .unwrap();
        let file = file_of(&[7; 5000]);
        map_file(&memory, 0x10_0000, &file, 5000).unwrap();
        let mut read = vec![0; 3 * 4096];
        let at = GuestAddress(0x10_0000);
        memory.read_slice(&mut read, at).unwrap();
        assert!(read[..5000].iter().all(|byte| *byte == 7));
        assert!(
            read[5000..8192].iter().all(|byte| *byte == 0),
            "to the page's end"
        );
        assert!(
            read[8192..].iter().all(|byte| *byte == 9),
            "the page after it"
        );
        memory.write_slice(&[1; 100], at).unwrap();
        let mut in_file = [0; 100];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut in_file, 0).unwrap();
        assert_eq!(in_file, [7; 100]);
    }

    #[test]
    fn map_file_refuses_what_is_not_ram_not_a_page_or_not_in_the_file() {
        let memory = allocate(64).unwrap();
        let file = file_of(&[7; 8192]);
        let end = 64 * layout::MIB;
        assert!(map_file(&memory, end - 8192, &file, 8192).is_ok());
        for (address, size) in [(end - 4096, 8192), (0x10_0800, 100), (0, u64::MAX)] {
            let refused = map_file(&memory, address, &file, size);
            assert!(
                matches!(refused, Err(MemoryError::Range { .. })),
                "{address:#x}"
            );
        }
        assert!(matches!(
            map_file(&memory, 0, &file, 8193),
            Err(MemoryError::Read(_))
        ));
    }
}

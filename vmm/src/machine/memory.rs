//! Guest RAM: private anonymous memory in huge pages where the host has them, but for the parts of
//! which a start touches a few pages only ([`layout::sparse_ranges`]).
//!
//! The kernel is copied into it. Linux patches its own text all over while it boots (returns,
//! alternatives): of a mapped kernel five pages in six took three faults each (read, write, and read
//! again), which together were half of the time to init. Copied into huge pages they take a handful.
//!
//! An initramfs is mapped, copy on write: nobody writes to it (the guest is told not to free it,
//! which would poison it), so all guests of a host share the page cache's copy and nobody fills pages
//! with it.
#![expect(unsafe_code, reason = "files in guest RAM, and advice about it")]

use std::fs::File;
use std::io;
use std::num::TryFromIntError;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address as _, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion as _,
    GuestRegionMmap, MmapRegion, VolatileSlice,
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
    /// A file could not be looked at, or is too short.
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

/// Copies `size` bytes of `file` from `offset` into guest RAM at `address`, without moving the file's
/// position, which other processes may share.
///
/// The file is mapped for the time of it. The host's kernel copies (`pread(2)`) with the processor's
/// string instruction, which is a byte at a time on an emulated one, and elsewhere as fast as this.
/// As for [`map_file`], the file must stay as long as it is.
///
/// # Errors
///
/// [`MemoryError::Range`] when that is not all RAM, [`MemoryError::Read`] when the file is shorter,
/// [`MemoryError::MapFile`].
pub(crate) fn copy_file(
    memory: &GuestMemoryMmap,
    address: u64,
    file: &File,
    offset: u64,
    size: u64,
) -> Result<(), MemoryError> {
    let out_of_range = || MemoryError::Range { address, size };
    let length = usize::try_from(size).ok().ok_or_else(out_of_range)?;
    let target = memory
        .get_slice(GuestAddress(address), length)
        .ok()
        .ok_or_else(out_of_range)?;
    if length == 0 {
        return Ok(());
    }
    let file_size = file.metadata().map_err(MemoryError::Read)?.len();
    if offset.checked_add(size).is_none_or(|end| end > file_size) {
        return Err(MemoryError::Read(io::ErrorKind::UnexpectedEof.into()));
    }
    FileView::new(file, offset, length)?
        .slice()
        .copy_to_volatile_slice(target);
    Ok(())
}

/// A part of a file, mapped for reading.
struct FileView {
    start: *mut u8,
    /// Of the mapping, in bytes.
    length: usize,
    /// Bytes of the mapping before the part: files are mapped from the beginning of a page.
    before: usize,
}

impl FileView {
    /// Maps `length` bytes, more than none, of `file` from `offset`. They must be in the file.
    fn new(file: &File, offset: u64, length: usize) -> Result<Self, MemoryError> {
        let failed = |error: TryFromIntError| MemoryError::MapFile(io::Error::other(error));
        let before = offset % layout::PAGE_SIZE;
        let at = libc::off_t::try_from(offset - before).map_err(failed)?;
        let before = usize::try_from(before).map_err(failed)?;
        let length = length + before;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                at,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(MemoryError::MapFile(io::Error::last_os_error()));
        }
        Ok(Self {
            start: start.cast(),
            length,
            before,
        })
    }

    fn slice(&self) -> VolatileSlice<'_> {
        let start = self.start.wrapping_add(self.before);
        // SAFETY: the mapping is `length` bytes, of which `before` are left out, and lives as long as
        // what is returned. Nobody writes through it, for `copy_to_volatile_slice` only reads.
        unsafe { VolatileSlice::new(start, self.length - self.before) }
    }
}

impl Drop for FileView {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, to which no reference is left.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
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
    fn copy_file_copies_the_bytes_and_leaves_the_files_position() {
        let memory = allocate(64).unwrap();
        let mut file = file_of(&[7; 5000]);
        file.rewind().unwrap();
        copy_file(&memory, 0x10_0001, &file, 4990, 10).unwrap();
        let mut read = [0; 11];
        memory
            .read_slice(&mut read, GuestAddress(0x10_0001))
            .unwrap();
        assert_eq!(read, [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
        assert_eq!(file.stream_position().unwrap(), 0);
    }

    #[test]
    fn copy_file_over_the_end_of_the_file_or_of_ram_returns_error() {
        let memory = allocate(64).unwrap();
        let file = file_of(&[7; 8192]);
        let end = 64 * layout::MIB;
        assert!(copy_file(&memory, end - 4096, &file, 0, 4096).is_ok());
        assert!(matches!(
            copy_file(&memory, end - 4096, &file, 0, 4097),
            Err(MemoryError::Range { .. })
        ));
        assert!(matches!(
            copy_file(&memory, 0, &file, 4096, 4097),
            Err(MemoryError::Read(_))
        ));
        assert!(copy_file(&memory, u64::MAX, &file, 0, 1).is_err());
        for (offset, size) in [(u64::MAX / 2, 1), (u64::MAX, 1), (8192, 1)] {
            assert!(matches!(
                copy_file(&memory, 0, &file, offset, size),
                Err(MemoryError::Read(_))
            ));
        }
        assert!(copy_file(&memory, 0, &file, 8192, 0).is_ok());
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

//! Files as one range of this process's memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::machine::layout::{PAGE_SIZE, WINDOW_ALIGN};
use crate::virtio::blk::Extents;

/// A disk's contents cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MappingError {
    /// Memory has no smaller parts.
    #[error("extent {index}: its {length} bytes at {offset} of the file are not whole pages")]
    Pages {
        /// Which extent.
        index: usize,
        /// Where it begins in its file, in bytes.
        offset: u64,
        /// How much of it, in bytes.
        length: u64,
    },
    /// More than this process can address.
    #[error("a disk of {0} bytes does not fit into memory addresses")]
    Size(u64),
    /// The kernel refuses.
    #[error("mapping {length} bytes")]
    Map {
        /// How many.
        length: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Files, read-only, one behind the other, and zeroes up to a multiple of [`WINDOW_ALIGN`].
///
/// The pages are those of the host's page cache: what several guests read is in memory once. A page
/// that the file has lost when it is read ends the guest (KVM reports EFAULT); files of the image
/// store are never changed or shortened.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut libc::c_void,
    length: usize,
    kept: bool,
}

// SAFETY: the mapping belongs to nobody else, is never written, and this process does not read it:
// guests do.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives away numbers alone.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps all extents of a disk.
    ///
    /// # Errors
    ///
    /// When an extent is not made of whole pages, or the kernel refuses.
    pub(crate) fn of(extents: &Extents) -> Result<Self, MappingError> {
        let size = extents.size();
        let length = size
            .checked_next_multiple_of(WINDOW_ALIGN)
            .and_then(|length| usize::try_from(length).ok())
            .ok_or(MappingError::Size(size))?;
        let mapping = Self::reserve(length)?;
        let mut at = 0;
        for (index, extent) in extents.iter().enumerate() {
            let (offset, length) = (extent.offset, extent.length);
            let not_pages = || MappingError::Pages {
                index,
                offset,
                length,
            };
            if !offset.is_multiple_of(PAGE_SIZE) || !length.is_multiple_of(PAGE_SIZE) {
                return Err(not_pages());
            }
            let length = usize::try_from(length).map_err(|_over| not_pages())?;
            mapping.put(at, &extent.file, offset, length)?;
            at += length;
        }
        Ok(mapping)
    }

    /// Zeroes, which take no memory.
    fn reserve(length: usize) -> Result<Self, MappingError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, where the kernel chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, libc::PROT_READ, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            return Err(MappingError::Map { length, source });
        }
        Ok(Self {
            start,
            length,
            kept: false,
        })
    }

    /// Puts a part of a file `at` bytes from the start, which end inside the mapping.
    fn put(&self, at: usize, file: &File, offset: u64, length: usize) -> Result<(), MappingError> {
        let failed = |source| MappingError::Map { length, source };
        let from = libc::off_t::try_from(offset).map_err(|e| failed(io::Error::other(e)))?;
        debug_assert!(
            at + length <= self.length,
            "the mapping is as long as all of them"
        );
        // SAFETY: the target is a part of a mapping of its own, to which no reference exists.
        let mapped = unsafe {
            libc::mmap(
                self.start.wrapping_byte_add(at),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                from,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Its address in this process.
    pub(crate) fn host_address(&self) -> u64 {
        self.start.addr() as u64
    }

    /// Its length in bytes, a multiple of [`WINDOW_ALIGN`].
    pub(crate) fn size(&self) -> u64 {
        self.length as u64
    }

    /// Leaves it mapped for as long as this process lives: a guest may read it.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// What is mapped.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `length` bytes are mapped for reading as long as `self` lives, of files that tests
        // do not change.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // SAFETY: a mapping of its own, of which nothing is left.
        let result = unsafe { libc::munmap(self.start, self.length) };
        debug_assert_eq!(result, 0, "it is a mapping");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::virtio::blk::Extent;

    fn extent(byte: u8, file_pages: usize, offset: u64, length: u64) -> Extent {
        let mut file = tempfile::tempfile().unwrap();
        for page in 0..file_pages {
            let fill = byte + u8::try_from(page).unwrap();
            file.write_all(&[fill; 4096]).unwrap();
        }
        Extent {
            file,
            offset,
            length,
        }
    }

    #[test]
    fn files_lie_one_behind_the_other_and_zeroes_behind_them() {
        let extents = vec![extent(1, 3, 4096, 8192), extent(10, 1, 0, 4096)];
        let mapping = Mapping::of(&Extents::new(extents).unwrap()).unwrap();
        assert_eq!(mapping.size(), WINDOW_ALIGN);
        let pages: Vec<u8> = mapping.bytes().chunks(4096).map(|page| page[9]).collect();
        assert_eq!(pages[..4], [2, 3, 10, 0]);
        assert!(pages[4..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_extent_that_is_not_whole_pages_is_refused() {
        for (offset, length) in [(512, 4096), (0, 4608)] {
            let extents = Extents::new(vec![extent(1, 2, offset, length)]).unwrap();
            let refused = Mapping::of(&extents);
            assert!(matches!(refused, Err(MappingError::Pages { index: 0, .. })));
        }
    }
}

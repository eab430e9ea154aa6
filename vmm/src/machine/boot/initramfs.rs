//! Loads the initramfs into guest memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::GuestMemoryMmap;

use crate::machine::layout::{self, PAGE_SIZE, Range};
use crate::machine::memory::{self, MemoryError};

/// First bytes of what the kernel can unpack: cpio (`newc`, with and without checksums), gzip,
/// zstd, xz, lz4.
const MAGICS: [&[u8]; 6] = [
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"\xfd7zXZ",
    b"\x02\x21\x4c\x18",
];

/// The initramfs cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitramfsError {
    /// The file could not be read.
    #[error("reading the initramfs")]
    Read(#[source] io::Error),
    /// It is empty, or nothing that a kernel unpacks.
    #[error("the initramfs is neither a cpio archive nor compressed")]
    Format,
    /// It does not fit beside the kernel.
    #[error(
        "the initramfs of {size} bytes does not fit into {ram} bytes of memory above the kernel"
    )]
    TooLarge {
        /// Its length.
        size: u64,
        /// Memory below the hole.
        ram: u64,
    },
    /// It could not be mapped into memory.
    #[error("loading the initramfs")]
    Load(#[source] MemoryError),
}

/// Maps `file` into the last pages of low RAM, away from where the kernel allocates first, and
/// returns where it lies.
///
/// # Errors
///
/// [`InitramfsError`], also for a file that is no initramfs at all: the guest would only panic
/// later, and say less.
pub(crate) fn load(
    file: &File,
    memory: &GuestMemoryMmap,
    low_ram: Range,
    kernel_end: u64,
) -> Result<Range, InitramfsError> {
    let size = file.metadata().map_err(InitramfsError::Read)?.len();
    let mut magic = [0; 6];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(InitramfsError::Format),
        Err(e) => return Err(InitramfsError::Read(e)),
    }
    if !MAGICS.iter().any(|known| magic.starts_with(known)) {
        return Err(InitramfsError::Format);
    }
    let too_large = || InitramfsError::TooLarge {
        size,
        ram: low_ram.size,
    };
    let pages = size
        .checked_next_multiple_of(PAGE_SIZE)
        .ok_or_else(too_large)?;
    // The boot protocol has 64 bits for the address, but Linux wants it in low memory anyway.
    let end = low_ram.end().min(layout::RAM_HOLE_START);
    let start = end.checked_sub(pages).ok_or_else(too_large)?;
    if start < kernel_end {
        return Err(too_large());
    }
    memory::map_file(memory, start, file, size).map_err(InitramfsError::Load)?;
    Ok(Range { start, size })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const LOW_RAM: Range = Range {
        start: 0,
        size: 32 * layout::MIB,
    };

    fn load_bytes(
        bytes: &[u8],
        kernel_end: u64,
    ) -> Result<(GuestMemoryMmap, Range), InitramfsError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let memory = memory::allocate(32).unwrap();
        let range = load(&file, &memory, LOW_RAM, kernel_end)?;
        Ok((memory, range))
    }

    #[test]
    fn load_places_the_whole_archive_at_the_end_of_ram() {
        let mut bytes = b"070701".to_vec();
        bytes.resize(5000, 3);
        let (memory, range) = load_bytes(&bytes, 0x10_0000).unwrap();
        assert_eq!(range.size, 5000);
        assert_eq!(range.start, LOW_RAM.end() - 8192);
        let mut in_guest = vec![0; 5000];
        memory
            .read_slice(&mut in_guest, GuestAddress(range.start))
            .unwrap();
        assert_eq!(in_guest, bytes);
    }

    #[test]
    fn load_of_something_else_returns_error() {
        for bytes in [&b""[..], b"0707", b"not an archive"] {
            assert!(matches!(
                load_bytes(bytes, 0x10_0000),
                Err(InitramfsError::Format)
            ));
        }
    }

    #[test]
    fn load_that_would_overlap_the_kernel_returns_error() {
        let mut bytes = b"070701".to_vec();
        bytes.resize(5000, 3);
        assert!(load_bytes(&bytes, LOW_RAM.end() - 8192).is_ok());
        assert!(matches!(
            load_bytes(&bytes, LOW_RAM.end() - 8191),
            Err(InitramfsError::TooLarge { .. })
        ));
    }
}

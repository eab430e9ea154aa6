//! Headers of the archives that we write ourselves: regular files, and nothing else.

use super::header::BLOCK;

/// Sizes from here on do not fit eleven octal digits (POSIX.1-2008 `ustar`).
const OCTAL_END: u64 = 1 << 33;

/// The two blocks of zeros that end an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The header of a regular file: root's, 0644, at the epoch, so that the same files always make the
/// same archive. `name` is at most 100 bytes of ASCII.
pub(crate) fn file_header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < OCTAL_END {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // GNU's base 256: the first bit says so.
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(156, b"0");
    put(257, b"ustar\x0000");
    // The checksum counts itself as eight spaces.
    put(148, b"        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Zeros that follow so many bytes of data, up to the next block.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    let length = size.next_multiple_of(BLOCK as u64) - size;
    &END[..usize::try_from(length).expect("less than a block")]
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::{EntryKind, Reader};
    use super::*;

    #[test]
    fn headers_are_read_as_they_were_written() {
        for size in [0, 1, OCTAL_END - 1, OCTAL_END, 1 << 50] {
            let header = file_header("blobs/sha256/ab", size);
            let entry = Reader::new(Cursor::new(header)).next_entry();
            let entry = entry.expect("a header").expect("an entry");
            assert_eq!(entry.kind, EntryKind::File);
            assert_eq!((entry.size, entry.mode), (size, 0o644));
            assert_eq!(entry.path, b"blobs/sha256/ab");
        }
    }

    #[test]
    fn data_is_padded_to_whole_blocks() {
        assert_eq!(
            [0, 1, 511, 512].map(|size| padding(size).len()),
            [0, 511, 1, 0]
        );
    }
}

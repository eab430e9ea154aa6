//! Loads an uncompressed ELF `vmlinux` and finds its PVH entry point.
//!
//! Guest RAM is in huge pages under the kernel, but for those that it hardly uses: where a gap is
//! between its segments, and where its `.bss` ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::machine::layout::{self, HUGE_PAGE_SIZE, Range};
use crate::machine::memory::{self, MemoryError};

/// Most program headers that are looked at; a kernel has eight or so.
const PROGRAM_HEADERS_MAX: usize = 64;
/// Longest note segment that is looked at, in bytes.
const NOTES_MAX: u64 = 64 * 1024;

const ELF_HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry point (Xen's public/elfnote.h).
const NOTE_PHYS32_ENTRY: u32 = 18;

/// The kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// The file could not be read, or is shorter than its headers say.
    #[error("reading {what} of the kernel")]
    Read {
        /// Which part.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is some other kind of file.
    #[error("the kernel is not an uncompressed x86-64 ELF executable (vmlinux): {0}")]
    Format(&'static str),
    /// There is no PVH entry point.
    #[error("the kernel has no PVH entry point (CONFIG_PVH)")]
    NoPvhEntry,
    /// A segment lies outside guest memory.
    #[error("a kernel segment of {size} bytes at {address:#x} does not fit into guest memory")]
    Segment {
        /// Physical address.
        address: u64,
        /// Length in bytes.
        size: u64,
    },
    /// A segment could not be copied.
    #[error("loading a kernel segment")]
    Load(#[source] MemoryError),
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoadedKernel {
    /// Where the first vCPU starts, in 32-bit protected mode.
    pub(crate) entry: u32,
    /// First address behind the kernel and its `.bss`.
    pub(crate) end: u64,
}

/// Copies the kernel into `memory`. `unpacks` tells that the files of an initramfs will fill what it
/// leaves free.
///
/// # Errors
///
/// [`KernelError`], for a file of the wrong kind, a truncated or inconsistent one, and for too
/// little memory.
pub(crate) fn load(
    file: &File,
    memory: &GuestMemoryMmap,
    unpacks: bool,
) -> Result<LoadedKernel, KernelError> {
    let segments = program_headers(file)?;
    let file_size = file
        .metadata()
        .map_err(|source| KernelError::Read {
            what: "the size",
            source,
        })?
        .len();
    let loaded: Vec<&Segment> = segments.iter().filter(|s| s.kind == PT_LOAD).collect();
    for segment in &loaded {
        check_segment(file_size, segment, memory)?;
    }
    let end = end(&loaded);
    for range in sparse_ranges(&loaded, unpacks) {
        memory::prefer_small_pages(memory, range);
    }
    for segment in &loaded {
        // What lies behind it is `.bss`: untouched RAM, which is zero.
        memory::copy_file(
            memory,
            segment.address,
            file,
            segment.offset,
            segment.file_size,
        )
        .map_err(KernelError::Load)?;
    }
    let entry = pvh_entry(file, &segments)?;
    if u64::from(entry) >= end {
        return Err(KernelError::Format("its entry point is outside of it"));
    }
    Ok(LoadedKernel { entry, end })
}

/// The fields of a program header that matter here (ELF-64 object file format, "Program header").
#[derive(Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

impl Segment {
    /// Where it lies, once it is known not to end behind the last address.
    fn range(&self) -> Range {
        Range {
            start: self.address,
            size: self.memory_size,
        }
    }
}

/// First address behind all segments.
fn end(segments: &[&Segment]) -> u64 {
    let ends = segments.iter().map(|segment| segment.range().end());
    ends.max().unwrap_or(0)
}

/// Huge pages of which the segments use less than a quarter. What is free between them Linux gives to
/// whoever asks next; the last one stays as it is after the start, unless it `unpacks` files.
fn sparse_ranges(segments: &[&Segment], unpacks: bool) -> Vec<Range> {
    let pages = segments.iter().flat_map(|segment| {
        let range = segment.range();
        range.start / HUGE_PAGE_SIZE..range.end().div_ceil(HUGE_PAGE_SIZE)
    });
    let pages: BTreeSet<u64> = pages.collect();
    let pages = pages.into_iter().map(|page| Range {
        start: page * HUGE_PAGE_SIZE,
        size: HUGE_PAGE_SIZE,
    });
    let used = |page: Range| -> u64 {
        let parts = segments.iter();
        let parts = parts.filter_map(|segment| segment.range().intersection(page));
        parts.map(|part| part.size).sum()
    };
    let end = end(segments);
    pages
        .filter(|page| used(*page) < HUGE_PAGE_SIZE / 4)
        .filter(|page| !unpacks || page.end() < end)
        .collect()
}

fn program_headers(file: &File) -> Result<Vec<Segment>, KernelError> {
    let mut header = [0; ELF_HEADER_LEN];
    read_exact(file, &mut header, 0, "the ELF header")?;
    if header[..4] != *b"\x7fELF" {
        return Err(KernelError::Format("no ELF magic"));
    }
    // ELFCLASS64, ELFDATA2LSB.
    if header[4] != 2 || header[5] != 1 {
        return Err(KernelError::Format("not 64-bit little-endian"));
    }
    if u16_at(&header, 16) != ET_EXEC || u16_at(&header, 18) != EM_X86_64 {
        return Err(KernelError::Format("not an x86-64 executable"));
    }
    let offset = u64_at(&header, 32);
    let count = usize::from(u16_at(&header, 56));
    if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_LEN {
        return Err(KernelError::Format("program headers of an unknown size"));
    }
    if count == 0 || count > PROGRAM_HEADERS_MAX {
        return Err(KernelError::Format("no or too many program headers"));
    }
    let mut bytes = vec![0; count * PROGRAM_HEADER_LEN];
    read_exact(file, &mut bytes, offset, "the program headers")?;
    Ok(bytes
        .chunks_exact(PROGRAM_HEADER_LEN)
        .map(|bytes| Segment {
            kind: u32_at(bytes, 0),
            offset: u64_at(bytes, 8),
            address: u64_at(bytes, 24),
            file_size: u64_at(bytes, 32),
            memory_size: u64_at(bytes, 40),
            align: u64_at(bytes, 48),
        })
        .collect())
}

/// Refuses a segment that is not whole, or does not fit.
fn check_segment(
    file_size: u64,
    segment: &Segment,
    memory: &GuestMemoryMmap,
) -> Result<(), KernelError> {
    let Segment {
        offset,
        address,
        file_size: filled,
        memory_size: size,
        ..
    } = *segment;
    let does_not_fit = || KernelError::Segment { address, size };
    let length = usize::try_from(size).ok().ok_or_else(does_not_fit)?;
    // The pages below belong to the boot tables.
    if address < layout::HIGH_RAM_START
        || !memory.check_range(GuestAddress(address), length)
        || address.checked_add(size).is_none()
    {
        return Err(does_not_fit());
    }
    if filled > size {
        return Err(KernelError::Format("a segment is larger than its memory"));
    }
    if offset.checked_add(filled).is_none_or(|end| end > file_size) {
        return Err(KernelError::Read {
            what: "a segment",
            source: io::ErrorKind::UnexpectedEof.into(),
        });
    }
    Ok(())
}

/// The address in the note that Xen calls `PHYS32_ENTRY`.
fn pvh_entry(file: &File, segments: &[Segment]) -> Result<u32, KernelError> {
    for segment in segments.iter().filter(|s| s.kind == PT_NOTE) {
        if segment.file_size > NOTES_MAX {
            return Err(KernelError::Format("its notes are too long"));
        }
        let length = usize::try_from(segment.file_size)
            .ok()
            .ok_or(KernelError::Format("its notes are too long"))?;
        let mut notes = vec![0; length];
        read_exact(file, &mut notes, segment.offset, "the notes")?;
        let align = if segment.align == 8 { 8 } else { 4 };
        if let Some(entry) = find_entry_note(&notes, align) {
            return Ok(entry);
        }
    }
    Err(KernelError::NoPvhEntry)
}

/// Walks ELF notes: name length, descriptor length and type, then both padded to `align`.
fn find_entry_note(mut notes: &[u8], align: usize) -> Option<u32> {
    const HEADER: usize = 12;
    while notes.len() >= HEADER {
        let name_len = usize::try_from(u32_at(notes, 0)).ok()?;
        let descriptor_len = usize::try_from(u32_at(notes, 4)).ok()?;
        let kind = u32_at(notes, 8);
        let descriptor_at = HEADER + name_len.checked_next_multiple_of(align)?;
        let name = notes.get(HEADER..HEADER.checked_add(name_len)?)?;
        let descriptor = notes.get(descriptor_at..descriptor_at.checked_add(descriptor_len)?)?;
        if kind == NOTE_PHYS32_ENTRY && name == b"Xen\0" && descriptor.len() >= 4 {
            return Some(u32_at(descriptor, 0));
        }
        let next = descriptor_at + descriptor_len.checked_next_multiple_of(align)?;
        notes = notes.get(next..)?;
    }
    None
}

fn read_exact(
    file: &File,
    buffer: &mut [u8],
    offset: u64,
    what: &'static str,
) -> Result<(), KernelError> {
    file.read_exact_at(buffer, offset)
        .map_err(|source| KernelError::Read { what, source })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;

    const LOAD_AT: u64 = 0x20_0000;
    const ENTRY: u32 = 0x20_0010;

    /// A kernel of one loaded segment at file offset 4096 and one note.
    struct TestKernel {
        load_offset: u64,
        load_address: u64,
        filled: u64,
        size: u64,
        note_kind: u32,
    }

    impl Default for TestKernel {
        fn default() -> Self {
            Self {
                load_offset: 4096,
                load_address: LOAD_AT,
                filled: 5000,
                size: 9000,
                note_kind: NOTE_PHYS32_ENTRY,
            }
        }
    }

    impl TestKernel {
        fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; 64];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
            bytes[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
            bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
            bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
            bytes[56..58].copy_from_slice(&2_u16.to_le_bytes());
            let mut header = |kind: u32, fields: [u64; 6]| {
                bytes.extend(kind.to_le_bytes());
                bytes.extend(0_u32.to_le_bytes());
                fields.iter().for_each(|f| bytes.extend(f.to_le_bytes()));
            };
            let load = [
                self.load_offset,
                0,
                self.load_address,
                self.filled,
                self.size,
                4096,
            ];
            header(PT_LOAD, load);
            header(PT_NOTE, [1024, 0, 0, 44, 44, 4]);
            bytes.resize(1024, 0);
            // A note of someone else's first, to be skipped.
            for word in [4, 4, NOTE_PHYS32_ENTRY] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.extend(b"GNU\0abcd");
            for word in [4, 8, self.note_kind] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.extend(b"Xen\0");
            bytes.extend(u64::from(ENTRY).to_le_bytes());
            bytes.resize(4096, 0);
            bytes.extend((0..5000_u32).map(|n| (n % 251) as u8 + 1));
            // What lies behind the segment in the file must not reach the guest.
            bytes.resize(4096 * 4, 0xee);
            bytes
        }

        fn file(&self) -> File {
            file_of(&self.bytes())
        }
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn memory() -> GuestMemoryMmap {
        memory::allocate(32).unwrap()
    }

    #[test]
    fn load_places_segments_and_finds_the_entry_point() {
        for load_offset in [4096, 4097] {
            let memory = memory();
            let kernel = TestKernel {
                load_offset,
                filled: 4999,
                ..TestKernel::default()
            };
            let loaded = load(&kernel.file(), &memory, false).unwrap();
            assert_eq!(loaded.entry, ENTRY);
            assert_eq!(loaded.end, LOAD_AT + 9000);

            let mut in_guest = vec![0; 9000];
            memory
                .read_slice(&mut in_guest, GuestAddress(LOAD_AT))
                .unwrap();
            let at = usize::try_from(load_offset).unwrap();
            assert_eq!(in_guest[..4999], kernel.bytes()[at..at + 4999]);
            assert!(in_guest[4999..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn huge_pages_that_segments_hardly_use_are_sparse() {
        const MIB: u64 = 1 << 20;
        let segment = |start: u64, end: u64| Segment {
            kind: PT_LOAD,
            offset: 0,
            address: start,
            file_size: 0,
            memory_size: end - start,
            align: 4096,
        };
        let segments = [
            segment(16 * MIB, 23 * MIB),
            segment(24 * MIB, 24 * MIB + 8192),
            segment(26 * MIB - 4096, 26 * MIB + 600 * 1024),
            segment(28 * MIB, 32 * MIB + 4096),
        ];
        let segments: Vec<&Segment> = segments.iter().collect();
        let starts = |unpacks| -> Vec<u64> {
            let sparse = sparse_ranges(&segments, unpacks);
            sparse.iter().map(|range| range.start / MIB).collect()
        };
        assert_eq!(starts(false), [24, 32]);
        assert_eq!(starts(true), [24]);
    }

    #[test]
    fn load_without_pvh_note_returns_error() {
        let kernel = TestKernel {
            note_kind: NOTE_PHYS32_ENTRY + 1,
            ..TestKernel::default()
        };
        assert!(matches!(
            load(&kernel.file(), &memory(), false),
            Err(KernelError::NoPvhEntry)
        ));
    }

    #[test]
    fn load_segment_outside_memory_returns_error() {
        for load_address in [0x1000, 32 << 20, u64::MAX - 100] {
            let kernel = TestKernel {
                load_address,
                ..TestKernel::default()
            };
            assert!(matches!(
                load(&kernel.file(), &memory(), false),
                Err(KernelError::Segment { .. })
            ));
        }
    }

    #[test]
    fn load_other_files_returns_error() {
        for bytes in [b"#!/bin/sh\n".repeat(100), vec![0; 4096]] {
            assert!(matches!(
                load(&file_of(&bytes), &memory(), false),
                Err(KernelError::Format(_))
            ));
        }
        assert!(matches!(
            load(&file_of(b""), &memory(), false),
            Err(KernelError::Read { .. })
        ));
    }

    #[test]
    fn load_kernel_cut_anywhere_returns_error_and_never_panics() {
        let whole = TestKernel::default().bytes();
        for length in (0..4096 + 5000).step_by(97) {
            assert!(load(&file_of(&whole[..length]), &memory(), false).is_err());
        }
    }

    #[test]
    fn load_kernel_with_any_header_byte_flipped_never_panics() {
        let whole = TestKernel::default().bytes();
        let memory = memory();
        for at in (0..176).chain(1024..1068) {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = load(&file_of(&bytes), &memory, false);
            }
        }
    }
}

//! The kernel as a VMM loads it: segments without filler.
//!
//! The text that is mapped while user programs run begins and ends at 2 MiB (page table isolation), and
//! the linker fills what is left with `int3`: a fifth of the image, which every start would copy into
//! every guest. Runs of it become gaps between segments; the last page of each stays, to stop
//! what is led astray before it reaches code. Sections, which no loader looks at, are left out.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, CacheError, Key, failed};
use crate::elf::number;

/// Bumped when the layout changes, so that older results are not taken for new ones.
const RECIPE: &str = "1";

/// The file's name in the cache.
const NAME: &str = "vmlinux";

/// The instruction `int3`.
const FILLER: u8 = 0xcc;

/// Shorter runs are not worth a segment.
const RUN_MIN: usize = 128 * 1024;

const PAGE_SIZE: usize = 4096;

/// ELF-64 object file format: sizes, types, and where fields are.
const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const PT_LOAD: u32 = 1;
const PROGRAM_HEADERS_AT: usize = 32;
const SECTION_HEADERS_AT: usize = 40;
const PROGRAM_HEADER_COUNT: usize = 56;
const SECTION_COUNTS: usize = 60;

/// Why a kernel cannot be rewritten.
#[derive(Debug, thiserror::Error)]
pub enum LoadableError {
    /// The cache failed, or a file.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// It is no ELF image, or a cut one.
    #[error("{} is no whole 64-bit ELF image: {what}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

/// Rewrites `vmlinux`, or finds the result in the cache.
///
/// # Errors
///
/// [`LoadableError`]; nothing is published then.
pub fn build(cache: &Cache, vmlinux: &Path) -> Result<PathBuf, LoadableError> {
    let bytes = fs::read(vmlinux).map_err(failed("reading", vmlinux))?;
    let key = Key::default()
        .input("recipe", RECIPE)
        .input("vmlinux", &bytes)
        .name();
    let entry = cache.get_or_make::<LoadableError>("loadable", &key, |draft| {
        let loadable = rewrite(&bytes).map_err(|what| LoadableError::Format {
            path: vmlinux.to_owned(),
            what,
        })?;
        let path = draft.join(NAME);
        Ok(fs::write(&path, loadable).map_err(failed("writing", &path))?)
    })?;
    let path = entry.join(NAME);
    cache.link(NAME, &path)?;
    Ok(path)
}

/// A program header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: usize,
    virtual_address: u64,
    physical_address: u64,
    file_size: usize,
    memory_size: u64,
    align: u64,
}

impl Segment {
    fn parse(header: &[u8]) -> Option<Self> {
        let size = |at| usize::try_from(number(header, at, 8)?).ok();
        let word = |at| u32::try_from(number(header, at, 4)?).ok();
        Some(Self {
            kind: word(0)?,
            flags: word(4)?,
            offset: size(8)?,
            virtual_address: number(header, 16, 8)?,
            physical_address: number(header, 24, 8)?,
            file_size: size(32)?,
            memory_size: number(header, 40, 8)?,
            align: number(header, 48, 8)?,
        })
    }

    fn header(&self) -> Vec<u8> {
        let mut header = [self.kind.to_le_bytes(), self.flags.to_le_bytes()].concat();
        for field in [
            self.offset as u64,
            self.virtual_address,
            self.physical_address,
            self.file_size as u64,
            self.memory_size,
            self.align,
        ] {
            header.extend(field.to_le_bytes());
        }
        header
    }

    /// The part that begins `from` bytes behind its start and ends `to` bytes behind it; the last part
    /// has what has no bytes in the file.
    fn part(&self, from: usize, to: usize) -> Self {
        let rest = self.memory_size - self.file_size as u64;
        let size = to - from;
        Self {
            offset: self.offset + from,
            virtual_address: self.virtual_address.wrapping_add(from as u64),
            physical_address: self.physical_address.wrapping_add(from as u64),
            file_size: size,
            memory_size: size as u64 + if to == self.file_size { rest } else { 0 },
            align: PAGE_SIZE as u64,
            ..*self
        }
    }

    /// What is left of it without filler.
    fn parts(&self, bytes: &[u8]) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut from = 0;
        for (start, end) in runs(bytes) {
            let (start, end) = (
                start.next_multiple_of(PAGE_SIZE),
                (end / PAGE_SIZE - 1) * PAGE_SIZE,
            );
            parts.push(self.part(from, start));
            from = end;
        }
        parts.push(self.part(from, self.file_size));
        parts
    }
}

/// Where long runs of filler start and end.
fn runs(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs = Vec::new();
    let mut start = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte != FILLER {
            if at - start >= RUN_MIN {
                runs.push((start, at));
            }
            start = at + 1;
        }
    }
    if bytes.len() - start.min(bytes.len()) >= RUN_MIN {
        runs.push((start, bytes.len()));
    }
    runs
}

fn rewrite(elf: &[u8]) -> Result<Vec<u8>, &'static str> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return Err("its first bytes");
    }
    let segments = segments(elf).ok_or("its program headers")?;
    let mut loaded = Vec::new();
    for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD) {
        let bytes = contents(elf, segment).ok_or("a segment")?;
        if segment.memory_size < segment.file_size as u64 {
            return Err("a segment that is larger than its memory");
        }
        if segment.offset % PAGE_SIZE != 0 || segment.virtual_address % PAGE_SIZE as u64 != 0 {
            return Err("a segment that begins inside a page");
        }
        loaded.extend(segment.parts(bytes));
    }
    let others = segments.iter().filter(|segment| segment.kind != PT_LOAD);
    let count = loaded.len() + others.clone().count();

    let mut headers = Vec::new();
    let mut body = Vec::new();
    let body_at = (HEADER_LEN + count * PROGRAM_HEADER_LEN).next_multiple_of(PAGE_SIZE);
    for part in &loaded {
        let offset = body_at + body.len();
        headers.extend(Segment { offset, ..*part }.header());
        body.extend(&elf[part.offset..part.offset + part.file_size]);
        body.resize(body.len().next_multiple_of(PAGE_SIZE), 0);
    }
    // Notes, which lie in what is loaded.
    for other in others {
        let offset = moved(other, &loaded, body_at).ok_or("a segment that is not loaded")?;
        headers.extend(Segment { offset, ..*other }.header());
    }

    let mut out = elf[..HEADER_LEN].to_vec();
    put(
        &mut out,
        PROGRAM_HEADERS_AT,
        &(HEADER_LEN as u64).to_le_bytes(),
    );
    put(&mut out, SECTION_HEADERS_AT, &[0; 8]);
    let count = u16::try_from(count).map_err(|_error| "too many segments")?;
    put(&mut out, PROGRAM_HEADER_COUNT, &count.to_le_bytes());
    put(&mut out, SECTION_COUNTS, &[0; 4]);
    out.extend(headers);
    out.resize(body_at, 0);
    out.extend(body);
    Ok(out)
}

fn segments(elf: &[u8]) -> Option<Vec<Segment>> {
    let table = usize::try_from(number(elf, PROGRAM_HEADERS_AT, 8)?).ok()?;
    let count = usize::try_from(number(elf, PROGRAM_HEADER_COUNT, 2)?).ok()?;
    let headers = elf.get(table..)?.get(..count * PROGRAM_HEADER_LEN)?;
    let headers = headers.chunks_exact(PROGRAM_HEADER_LEN);
    headers.map(Segment::parse).collect()
}

fn contents<'a>(elf: &'a [u8], segment: &Segment) -> Option<&'a [u8]> {
    elf.get(segment.offset..)?.get(..segment.file_size)
}

/// Where in the new file the bytes of `other` are.
fn moved(other: &Segment, loaded: &[Segment], body_at: usize) -> Option<usize> {
    let mut at = body_at;
    for part in loaded {
        let within = other.offset.checked_sub(part.offset);
        if let Some(within) = within.filter(|w| w + other.file_size <= part.file_size) {
            return Some(at + within);
        }
        at += part.file_size.next_multiple_of(PAGE_SIZE);
    }
    None
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PT_NOTE: u32 = 4;
    const AT: u64 = 0xffff_ffff_8100_0000;

    /// What a segment of `contents` looks like in memory, and a note in its last bytes.
    fn image(contents: &[u8], memory_size: u64) -> Vec<u8> {
        let load = Segment {
            kind: PT_LOAD,
            flags: 5,
            offset: 2 * PAGE_SIZE,
            virtual_address: AT,
            physical_address: 0x100_0000,
            file_size: contents.len(),
            memory_size,
            align: 0x20_0000,
        };
        let note = Segment {
            kind: PT_NOTE,
            align: 4,
            offset: load.offset + contents.len() - 8,
            file_size: 8,
            memory_size: 8,
            ..load
        };
        let mut elf = vec![0; HEADER_LEN];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[PROGRAM_HEADERS_AT] = 64;
        elf[SECTION_HEADERS_AT] = 1;
        elf[PROGRAM_HEADER_COUNT] = 2;
        elf.extend(load.header());
        elf.extend(note.header());
        elf.resize(load.offset, 0xaa);
        elf.extend(contents);
        elf
    }

    /// Guest memory from `AT` on, with `fill` where nothing is loaded.
    fn loaded(elf: &[u8], length: usize, fill: u8) -> Vec<u8> {
        let mut memory = vec![fill; length];
        for segment in segments(elf).unwrap() {
            if segment.kind == PT_LOAD {
                let at = usize::try_from(segment.virtual_address - AT).unwrap();
                assert_eq!(segment.physical_address - 0x100_0000, at as u64);
                let bytes = contents(elf, &segment).unwrap();
                memory[at..at + bytes.len()].copy_from_slice(bytes);
                let end = at + usize::try_from(segment.memory_size).unwrap();
                memory[at + bytes.len()..end].fill(0);
            }
        }
        memory
    }

    fn text() -> Vec<u8> {
        let mut text: Vec<u8> = (0..100_000_u32).map(|n| (n % 100) as u8).collect();
        text.resize(500_000, FILLER);
        text.extend([1, 2, 3, 4]);
        text.resize(510_000, FILLER);
        text.extend([5; 77]);
        text.resize(900_000, FILLER);
        text.extend(b"the note");
        text
    }

    #[test]
    fn what_is_loaded_is_the_same_but_for_filler() {
        let text = text();
        let memory_size = text.len() as u64 + 10_000;
        let elf = image(&text, memory_size);
        let out = rewrite(&elf).unwrap();
        assert!(out.len() + 700_000 < elf.len(), "{} bytes", out.len());

        let length = text.len() + 10_000;
        assert_eq!(loaded(&out, length, FILLER), loaded(&elf, length, FILLER));
        let gaps = loaded(&out, length, 0);
        let missing = gaps.iter().zip(&text).filter(|(got, want)| got != want);
        assert!(missing.count() > 700_000);
        // Before what comes after a gap, whoever runs into it is stopped.
        for code in [500_000, 900_000] {
            assert!(
                gaps[code - PAGE_SIZE..code]
                    .iter()
                    .all(|byte| *byte == FILLER)
            );
        }
    }

    #[test]
    fn notes_are_found_and_sections_are_gone() {
        let text = text();
        let out = rewrite(&image(&text, text.len() as u64)).unwrap();
        let segments = segments(&out).unwrap();
        let note = segments.iter().find(|segment| segment.kind == PT_NOTE);
        let note = note.unwrap();
        assert_eq!(
            (contents(&out, note).unwrap(), note.align),
            (&b"the note"[..], 4)
        );
        assert_eq!(number(&out, SECTION_HEADERS_AT, 8), Some(0));
        for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD) {
            let address = usize::try_from(segment.virtual_address - AT).unwrap();
            assert_eq!((segment.offset % PAGE_SIZE, address % PAGE_SIZE), (0, 0));
        }
    }

    #[test]
    fn rewriting_again_changes_nothing() {
        let text = text();
        let once = rewrite(&image(&text, text.len() as u64)).unwrap();
        assert_eq!(rewrite(&once).unwrap(), once);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let text = text();
        let elf = image(&text, text.len() as u64);
        for length in (0..elf.len()).step_by(9973) {
            assert!(rewrite(&elf[..length]).is_err(), "{length}");
        }
        assert!(rewrite(b"#!/bin/sh").is_err());
    }
}

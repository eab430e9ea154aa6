//! Files with holes: GNU's old format and its three PAX formats.
//!
//! | format  | segments                                   | name and length                     |
//! |---------|--------------------------------------------|-------------------------------------|
//! | old GNU | header, then blocks of 21                  | header, `realsize`                  |
//! | 0.0     | records `offset` and `numbytes`, repeated  | header, record `size`               |
//! | 0.1     | record `map`                               | record `name`, record `size`        |
//! | 1.0     | decimal lines at the beginning of the data | record `name`, record `realsize`    |
//!
//! GNU tar manual, "Storing Sparse Files".

use std::io::BufRead;

use super::header::{BLOCK, Header, unsigned};
use super::pax::decimal;
use super::{MAX_EXTENSION, Reader, TarError};

/// The most segments a file may have: as many as fit, at their shortest, into [`MAX_EXTENSION`].
const MAX_SEGMENTS: usize = 1 << 18;

const PROBLEM: TarError = TarError::Malformed("a sparse file's map makes no sense");

/// Data between holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where in the file it starts.
    pub(crate) offset: u64,
    /// How long it is.
    pub(crate) length: u64,
}

/// What the PAX records say.
#[derive(Debug, Default)]
pub(super) struct SparseMap {
    pub(super) name: Option<Vec<u8>>,
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
}

impl SparseMap {
    /// One record whose keyword begins with `GNU.sparse.`, which was cut off.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"major" => self.major = decimal(value)?,
            b"minor" => self.minor = decimal(value)?,
            b"realsize" | b"size" => self.size = decimal(value)?,
            b"offset" | b"numbytes" => {
                // Numbers come in pairs, the offset first.
                if (key == b"offset") != self.numbers.len().is_multiple_of(2) {
                    return Err(PROBLEM);
                }
                self.push(decimal(value)?.ok_or(PROBLEM)?)?;
            }
            b"map" => {
                self.numbers.clear();
                for number in value.split(|&byte| byte == b',') {
                    self.push(decimal(number)?.ok_or(PROBLEM)?)?;
                }
            }
            // `numblocks` repeats what the map says.
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, number: u64) -> Result<(), TarError> {
        if self.numbers.len() >= 2 * MAX_SEGMENTS {
            return Err(TarError::TooLarge);
        }
        self.numbers.push(number);
        Ok(())
    }

    /// The file's length and its segments; in format 1.0 the latter are read off its data.
    pub(super) fn resolve<R: BufRead>(
        mut self,
        reader: &mut Reader<R>,
    ) -> Result<(u64, Vec<Segment>), TarError> {
        if (self.major, self.minor) == (Some(1), Some(0)) {
            self.numbers.clear();
            self.read_map(reader)?;
        } else if self.major.is_some_and(|major| major != 0) {
            return Err(TarError::Malformed("an unknown sparse format"));
        }
        let size = self.size.ok_or(PROBLEM)?;
        if !self.numbers.len().is_multiple_of(2) {
            return Err(PROBLEM);
        }
        let segments = self.numbers.chunks_exact(2);
        Ok((
            size,
            segments
                .map(|pair| Segment {
                    offset: pair[0],
                    length: pair[1],
                })
                .collect(),
        ))
    }

    /// Format 1.0: a count, then offsets and lengths, a line each, padded to a whole block.
    fn read_map<R: BufRead>(&mut self, reader: &mut Reader<R>) -> Result<(), TarError> {
        let mut taken = 0_u64;
        let mut line = || -> Result<u64, TarError> {
            let mut digits = Vec::new();
            loop {
                let &byte = reader.data()?.first().ok_or(PROBLEM)?;
                reader.consume(1);
                taken += 1;
                if taken > MAX_EXTENSION {
                    return Err(TarError::TooLarge);
                }
                if byte == b'\n' {
                    return decimal(&digits)?.ok_or(PROBLEM);
                }
                digits.push(byte);
            }
        };
        let count = line()?;
        for _ in 0..count.checked_mul(2).ok_or(PROBLEM)? {
            let number = line()?;
            self.push(number)?;
        }
        let padding = taken.next_multiple_of(BLOCK as u64) - taken;
        for _ in 0..padding {
            if reader.data()?.is_empty() {
                return Err(PROBLEM);
            }
            reader.consume(1);
        }
        Ok(())
    }
}

/// Reads the old format's map, in the header and in the blocks after it.
pub(super) fn read_gnu<R: BufRead>(
    reader: &mut Reader<R>,
    header: &Header,
) -> Result<(u64, Vec<Segment>), TarError> {
    let size = header.real_size()?;
    let mut segments = Vec::new();
    let (first, mut more) = header.sparse_segments();
    push_gnu(first, &mut segments)?;
    while more {
        let block = reader.read_block()?.ok_or(TarError::Truncated)?;
        push_gnu(&block[..21 * 24], &mut segments)?;
        more = block[504] != 0;
    }
    Ok((size, segments))
}

/// Segments of 12 bytes of offset and 12 of length; an unused one is zeros.
fn push_gnu(fields: &[u8], segments: &mut Vec<Segment>) -> Result<(), TarError> {
    for field in fields.chunks_exact(24) {
        if field[0] == 0 {
            return Ok(());
        }
        if segments.len() >= MAX_SEGMENTS {
            return Err(TarError::TooLarge);
        }
        segments.push(Segment {
            offset: unsigned(&field[..12], "a sparse file's map is not a number")?,
            length: unsigned(&field[12..], "a sparse file's map is not a number")?,
        });
    }
    Ok(())
}

/// Segments rise, do not overlap, lie inside the file, and hold as much as the archive does.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0;
    let mut total = 0_u64;
    for segment in segments {
        let next = segment.offset.checked_add(segment.length).ok_or(PROBLEM)?;
        if segment.offset < end || next > size {
            return Err(PROBLEM);
        }
        end = next;
        total += segment.length;
    }
    if total != stored || i64::try_from(size).is_err() {
        return Err(PROBLEM);
    }
    Ok(())
}

//! What a driver asks for (virtio 1.2 section 5.2.6), parsed and checked against the disk.

use vm_memory::VolatileSlice;

use super::SECTOR_SIZE;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::segments::Segments;

/// Length of `struct virtio_blk_req` before its data: type, reserved, sector.
const HEADER_LEN: usize = 16;

/// Length of `struct virtio_blk_discard_write_zeroes`.
const RANGE_LEN: usize = 16;

/// Length of the answer to GET_ID.
pub(super) const SERIAL_LEN: usize = 20;

/// Most bytes that one request moves: `size_max` times `seg_max` of the configuration space.
pub(super) const DATA_MAX: u64 = super::SIZE_MAX as u64 * super::SEG_MAX as u64;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// Flag of a range to write zeroes to: it may be deallocated.
const RANGE_UNMAP: u32 = 1;

/// The last byte of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// The driver left no room for a status, or no request: the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a block request of {0} bytes has no header")]
    NoHeader(usize),
    #[error("a block request has no room for its status")]
    NoStatus,
}

/// A request that the disk can try to honour. Offsets and lengths in bytes, inside the disk.
#[derive(Debug)]
pub(super) enum Operation<'m> {
    Read { offset: u64, into: Segments<'m> },
    Write { offset: u64, from: Segments<'m> },
    Flush,
    GetId { into: Segments<'m> },
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

/// A range to discard or to write zeroes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Zeroes may be deallocated blocks.
    pub(super) unmap: bool,
}

/// A parsed chain.
#[derive(Debug)]
pub(super) struct Request<'m> {
    /// What to do, or the status that refuses it.
    pub(super) operation: Result<Operation<'m>, Status>,
    /// Where the status goes.
    pub(super) status: VolatileSlice<'m>,
}

/// The disk that requests are checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    pub(super) read_only: bool,
}

impl<'m> Request<'m> {
    /// Parses a chain. Framing is the driver's choice (section 2.7.4): the header, the data and the
    /// status may share descriptors.
    pub(super) fn parse(chain: Chain<'m>, limits: Limits) -> Result<Self, Malformed> {
        let Chain {
            mut readable,
            mut writable,
            ..
        } = chain;
        let status = writable.pop_last_byte().ok_or(Malformed::NoStatus)?;
        let mut header = [0; HEADER_LEN];
        if !readable.read_front(&mut header) {
            return Err(Malformed::NoHeader(readable.len()));
        }
        let kind = read_u32(&header, 0);
        let sector = read_u64(&header, 8);
        Ok(Self {
            operation: operation(kind, sector, readable, writable, limits),
            status,
        })
    }
}

fn operation<'m>(
    kind: u32,
    sector: u64,
    readable: Segments<'m>,
    writable: Segments<'m>,
    limits: Limits,
) -> Result<Operation<'m>, Status> {
    match kind {
        TYPE_IN => Ok(Operation::Read {
            offset: data_offset(sector, writable.len(), limits)?,
            into: writable,
        }),
        TYPE_OUT if limits.read_only => Err(Status::IoErr),
        TYPE_OUT => Ok(Operation::Write {
            offset: data_offset(sector, readable.len(), limits)?,
            from: readable,
        }),
        TYPE_GET_ID if writable.len() < SERIAL_LEN => Err(Status::IoErr),
        TYPE_GET_ID => Ok(Operation::GetId { into: writable }),
        // The features that these depend on are offered for writable disks only.
        TYPE_FLUSH | TYPE_DISCARD | TYPE_WRITE_ZEROES if limits.read_only => {
            Err(Status::Unsupported)
        }
        TYPE_FLUSH => Ok(Operation::Flush),
        TYPE_DISCARD => {
            let ranges = ranges(readable, super::DISCARD_SECTORS_MAX, limits)?;
            // Section 5.2.6.2: unmap is no flag of a discard.
            if ranges.iter().any(|range| range.unmap) {
                return Err(Status::Unsupported);
            }
            Ok(Operation::Discard(ranges))
        }
        TYPE_WRITE_ZEROES => Ok(Operation::WriteZeroes(ranges(
            readable,
            super::WRITE_ZEROES_SECTORS_MAX,
            limits,
        )?)),
        _ => Err(Status::Unsupported),
    }
}

fn data_offset(sector: u64, length: usize, limits: Limits) -> Result<u64, Status> {
    let length = length as u64;
    if !length.is_multiple_of(SECTOR_SIZE) || length > DATA_MAX {
        return Err(Status::IoErr);
    }
    inside(sector, length, limits).ok_or(Status::IoErr)
}

/// The offset of `sector` if `length` bytes from there are on the disk.
fn inside(sector: u64, length: u64, limits: Limits) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_SIZE)?;
    let end = offset.checked_add(length)?;
    (end <= limits.size).then_some(offset)
}

fn ranges(mut data: Segments<'_>, most: u32, limits: Limits) -> Result<Vec<Range>, Status> {
    let count = data.len() / RANGE_LEN;
    let whole = data.len().is_multiple_of(RANGE_LEN);
    if !whole || count == 0 || count > super::RANGES_MAX as usize {
        return Err(Status::IoErr);
    }
    let mut ranges = Vec::with_capacity(count);
    let mut bytes = [0; RANGE_LEN];
    while data.read_front(&mut bytes) {
        let (sector, sectors) = (read_u64(&bytes, 0), read_u32(&bytes, 8));
        let flags = read_u32(&bytes, 12);
        if flags & !RANGE_UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        let length = u64::from(sectors) * SECTOR_SIZE;
        if sectors > most {
            return Err(Status::IoErr);
        }
        ranges.push(Range {
            offset: inside(sector, length, limits).ok_or(Status::IoErr)?,
            length,
            unmap: flags & RANGE_UNMAP != 0,
        });
    }
    Ok(ranges)
}

fn read_u32(bytes: &[u8; 16], at: usize) -> u32 {
    let field = bytes[at..].first_chunk().expect("the field is in 16 bytes");
    u32::from_le_bytes(*field)
}

fn read_u64(bytes: &[u8; 16], at: usize) -> u64 {
    let field = bytes[at..].first_chunk().expect("the field is in 16 bytes");
    u64::from_le_bytes(*field)
}

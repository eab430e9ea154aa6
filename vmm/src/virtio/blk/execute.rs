//! Requests done on the disk's files. Runs on the disk's worker thread and blocks it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::pwrite;

use super::Backing;
use super::request::{Limits, Malformed, Operation, Range, Request, SERIAL_LEN, Status};
use crate::virtio::chain::Chain;
use crate::virtio::queue_worker::RequestHandler;
use crate::virtio::segments::Segments;

/// Zeroes for file systems that cannot make a range of them.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Serves the requests of one disk.
#[derive(Debug)]
pub(super) struct Executor {
    pub(super) backing: Arc<Backing>,
}

impl RequestHandler for Executor {
    type Malformed = Malformed;

    fn serve(&mut self, chain: Chain<'_>) -> Result<u32, Malformed> {
        let limits = Limits {
            size: self.backing.extents.size(),
            read_only: self.backing.read_only,
        };
        let request = Request::parse(chain, limits)?;
        let (status, written) = match request.operation {
            Ok(operation) => self.execute(operation),
            Err(status) => (status, 0),
        };
        request.status.copy_from(&[status as u8]);
        Ok(written + 1)
    }
}

impl Executor {
    /// The status and how many bytes were written to the driver's buffer.
    fn execute(&self, operation: Operation<'_>) -> (Status, u32) {
        let (result, written) = match operation {
            Operation::Read { offset, mut into } => {
                let len = into.len();
                let result = self.read(offset, &mut into);
                (result, len - into.len())
            }
            Operation::Write { offset, mut from } => (self.write(offset, &mut from), 0),
            Operation::Flush => (self.flush(), 0),
            Operation::GetId { mut into } => {
                let written = into.write_front(&self.backing.id());
                debug_assert!(written, "the parser checked the room for an id");
                (Ok(()), SERIAL_LEN)
            }
            Operation::Discard(ranges) => (self.each(&ranges, punch), 0),
            Operation::WriteZeroes(ranges) => (self.each(&ranges, zero), 0),
        };
        let status = match result {
            Ok(()) => Status::Ok,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Status::Unsupported,
            Err(error) => {
                let serial = self.backing.serial.as_str();
                tracing::warn!(serial, %error, "a disk request failed");
                Status::IoErr
            }
        };
        let written = u32::try_from(written).expect("a request moves at most DATA_MAX bytes");
        (status, written)
    }

    fn read(&self, mut offset: u64, into: &mut Segments<'_>) -> io::Result<()> {
        while let Some(piece) = self.backing.extents.locate(offset, into.len() as u64) {
            let limit = usize::try_from(piece.length).unwrap_or(usize::MAX);
            match into.read_file(piece.file, piece.offset, limit)? {
                // The file became shorter than the disk.
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => offset += read as u64,
            }
        }
        Ok(())
    }

    fn write(&self, mut offset: u64, from: &mut Segments<'_>) -> io::Result<()> {
        while let Some(piece) = self.backing.extents.locate(offset, from.len() as u64) {
            let limit = usize::try_from(piece.length).unwrap_or(usize::MAX);
            match from.write_file(piece.file, piece.offset, limit)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => offset += written as u64,
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.backing
            .extents
            .files()
            .try_for_each(std::fs::File::sync_data)
    }

    fn each(
        &self,
        ranges: &[Range],
        act: fn(BorrowedFd<'_>, Range) -> nix::Result<()>,
    ) -> io::Result<()> {
        for range in ranges {
            let mut range = *range;
            while let Some(piece) = self.backing.extents.locate(range.offset, range.length) {
                let part = Range {
                    offset: piece.offset,
                    length: piece.length,
                    ..range
                };
                act(piece.file, part)?;
                range.offset += piece.length;
                range.length -= piece.length;
            }
        }
        Ok(())
    }
}

/// Gives the blocks back to the file system; they read as zeroes.
fn punch(file: BorrowedFd<'_>, range: Range) -> nix::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    allocate(file, flags, range)
}

/// Makes the range read as zeroes, keeping its blocks unless it may be unmapped.
fn zero(file: BorrowedFd<'_>, range: Range) -> nix::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let made = if range.unmap {
        punch(file, range)
    } else {
        allocate(file, flags, range)
    };
    match made {
        Err(Errno::EOPNOTSUPP) => write_zeroes(file, range),
        made => made,
    }
}

fn allocate(file: BorrowedFd<'_>, flags: FallocateFlags, range: Range) -> nix::Result<()> {
    let (offset, length) = (to_off_t(range.offset)?, to_off_t(range.length)?);
    loop {
        match fallocate(file.as_fd(), flags, offset, length) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

fn write_zeroes(file: BorrowedFd<'_>, mut range: Range) -> nix::Result<()> {
    while range.length > 0 {
        let len = usize::try_from(range.length).map_or(ZEROES.len(), |len| len.min(ZEROES.len()));
        let written = match pwrite(file.as_fd(), &ZEROES[..len], to_off_t(range.offset)?) {
            Err(Errno::EINTR) => continue,
            written => written? as u64,
        };
        range.offset += written;
        range.length -= written;
    }
    Ok(())
}

fn to_off_t(value: u64) -> nix::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_too_large| Errno::EINVAL)
}

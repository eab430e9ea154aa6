//! Pieces of guest memory that together hold one run of bytes, and transfers between them and
//! files or sockets without a copy in between.
#![expect(
    unsafe_code,
    reason = "vectored system calls on guest memory, which no Rust slice may alias"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// Most pieces handed to one system call. The rest goes with the next one.
pub(crate) const PIECES_PER_CALL: usize = 128;

/// A run of bytes in guest memory, in pieces. Consumed from the front.
///
/// The guest may change the bytes at any time: what is judged must be copied first.
#[derive(Debug, Default)]
pub(crate) struct Segments<'m> {
    pieces: Vec<VolatileSlice<'m>>,
    /// Pieces before this one are consumed.
    first: usize,
    len: usize,
}

impl<'m> Segments<'m> {
    /// Adds a piece at the end.
    pub(crate) fn push(&mut self, piece: VolatileSlice<'m>) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Bytes that are left.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Pieces that are left.
    pub(crate) fn pieces(&self) -> usize {
        self.left().len()
    }

    /// Adds `other`'s bytes from `skip` on, `most` of them, at the end. Returns how many those are.
    pub(crate) fn append_range(&mut self, other: &Self, skip: usize, most: usize) -> usize {
        let (mut skip, mut left) = (skip, most);
        let before = self.len;
        for piece in other.left() {
            let start = skip.min(piece.len());
            let len = (piece.len() - start).min(left);
            skip -= start;
            left -= len;
            let range = piece.subslice(start, len);
            self.push(range.expect("the range is inside the piece"));
        }
        self.len - before
    }

    /// Consumes `count` bytes; all of them if there are fewer.
    pub(crate) fn advance(&mut self, count: usize) {
        let mut count = count.min(self.len);
        self.len -= count;
        while let Some(piece) = self.pieces.get_mut(self.first) {
            if count < piece.len() {
                *piece = piece.offset(count).expect("the offset is inside the piece");
                return;
            }
            count -= piece.len();
            self.first += 1;
        }
    }

    /// Drops all but the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        let mut excess = self.len.saturating_sub(len);
        self.len -= excess;
        while excess > 0 {
            let Some(last) = self.pieces.last_mut() else {
                return;
            };
            let kept = last.len().saturating_sub(excess);
            excess -= last.len() - kept;
            if kept == 0 {
                self.pieces.pop();
            } else {
                *last = last
                    .subslice(0, kept)
                    .expect("a shorter piece is inside the piece");
            }
        }
    }

    /// Takes the last byte off.
    pub(crate) fn pop_last_byte(&mut self) -> Option<VolatileSlice<'m>> {
        let last = self.left().last()?;
        let byte = last
            .offset(last.len() - 1)
            .expect("no piece is empty, so it has a last byte");
        self.truncate(self.len - 1);
        Some(byte)
    }

    /// Copies from the front into `buffer` and consumes that. False when there is not enough;
    /// nothing is consumed then.
    #[must_use]
    pub(crate) fn read_front(&mut self, buffer: &mut [u8]) -> bool {
        if self.len < buffer.len() {
            return false;
        }
        let mut copied = 0;
        for piece in self.left() {
            if copied == buffer.len() {
                break;
            }
            copied += piece.copy_to(&mut buffer[copied..]);
        }
        self.advance(copied);
        true
    }

    /// Copies `bytes` to the front and consumes that. False when there is not enough room; nothing
    /// is written then.
    #[must_use]
    pub(crate) fn write_front(&mut self, bytes: &[u8]) -> bool {
        if self.len < bytes.len() {
            return false;
        }
        let mut rest = bytes;
        for piece in self.left() {
            let (now, later) = rest.split_at(rest.len().min(piece.len()));
            piece.copy_from(now);
            rest = later;
        }
        self.advance(bytes.len());
        true
    }

    /// Reads from a file at `offset` (`preadv(2)`) into the first `limit` bytes, and consumes what
    /// was read. May read less; 0 at the end of the file.
    pub(crate) fn read_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        limit: usize,
    ) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        self.transfer(limit, |iovecs, count| {
            // SAFETY: `transfer` passes `count` iovecs, each of which lies in guest memory that
            // stays mapped while `self` borrows it.
            unsafe { libc::preadv(file.as_raw_fd(), iovecs, count, offset) }
        })
    }

    /// Writes the first `limit` bytes to a file at `offset` (`pwritev(2)`), and consumes what was
    /// written. May write less.
    pub(crate) fn write_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        limit: usize,
    ) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        self.transfer(limit, |iovecs, count| {
            // SAFETY: as in `read_file`.
            unsafe { libc::pwritev(file.as_raw_fd(), iovecs, count, offset) }
        })
    }

    /// Reads from a stream (`readv(2)`) into the first `limit` bytes, and consumes what was read.
    pub(crate) fn read_stream(
        &mut self,
        stream: BorrowedFd<'_>,
        limit: usize,
    ) -> io::Result<usize> {
        self.transfer(limit, |iovecs, count| {
            // SAFETY: as in `read_file`.
            unsafe { libc::readv(stream.as_raw_fd(), iovecs, count) }
        })
    }

    /// Writes all that fits to a stream (`writev(2)`), and consumes what was written.
    pub(crate) fn write_stream(&mut self, stream: BorrowedFd<'_>) -> io::Result<usize> {
        self.transfer(usize::MAX, |iovecs, count| {
            // SAFETY: as in `read_file`.
            unsafe { libc::writev(stream.as_raw_fd(), iovecs, count) }
        })
    }

    fn left(&self) -> &[VolatileSlice<'m>] {
        &self.pieces[self.first..]
    }

    /// Calls `call` with the first pieces, `limit` bytes at most, until a signal does not interrupt
    /// it, and consumes as many bytes as it returns.
    fn transfer(
        &mut self,
        limit: usize,
        call: impl Fn(*const libc::iovec, libc::c_int) -> libc::ssize_t,
    ) -> io::Result<usize> {
        const EMPTY: libc::iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut iovecs = [EMPTY; PIECES_PER_CALL];
        let mut count = 0;
        let mut left = limit;
        for (iovec, piece) in iovecs.iter_mut().zip(self.left()) {
            if left == 0 {
                break;
            }
            iovec.iov_base = piece.ptr_guard_mut().as_ptr().cast();
            iovec.iov_len = piece.len().min(left);
            left -= iovec.iov_len;
            count += 1;
        }
        loop {
            match usize::try_from(call(iovecs.as_ptr(), count)) {
                Ok(transferred) => {
                    self.advance(transferred);
                    return Ok(transferred);
                }
                Err(_negative) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_too_large| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn segments<'m>(pieces: &'m mut [Vec<u8>]) -> Segments<'m> {
        let mut segments = Segments::default();
        for piece in pieces {
            segments.push(VolatileSlice::from(piece.as_mut_slice()));
        }
        segments
    }

    #[test]
    fn reading_and_writing_the_front_crosses_pieces() {
        let mut memory = [b"ab".to_vec(), vec![], b"cdef".to_vec()];
        let mut run = segments(&mut memory);
        let mut front = [0; 3];
        assert!(run.read_front(&mut front));
        assert_eq!(&front, b"abc");
        assert!(!run.read_front(&mut [0; 4]));
        assert_eq!(run.len(), 3);
        assert!(run.write_front(b"XY"));
        assert!(!run.write_front(b"ZZ"));
        assert_eq!(run.len(), 1);
        assert_eq!(memory[2], b"cXYf");
    }

    #[test]
    fn the_last_byte_can_be_a_piece_of_its_own() {
        let mut memory = [b"ab".to_vec(), b"c".to_vec()];
        let mut run = segments(&mut memory);
        for expected in [b"c", b"b", b"a"] {
            let mut byte = [0];
            run.pop_last_byte().unwrap().copy_to(&mut byte);
            assert_eq!(&byte, expected);
        }
        assert!(run.pop_last_byte().is_none());
        assert_eq!(run.len(), 0);
    }

    #[test]
    fn truncate_keeps_the_front() {
        let mut memory = [b"ab".to_vec(), b"cd".to_vec(), b"ef".to_vec()];
        let mut run = segments(&mut memory);
        run.truncate(9);
        assert_eq!(run.len(), 6);
        run.truncate(3);
        let mut front = [0; 3];
        assert!(run.read_front(&mut front));
        assert_eq!(&front, b"abc");
        run.truncate(0);
        assert_eq!(run.len(), 0);
    }

    #[test]
    fn a_range_of_another_run_is_appended() {
        let mut memory = [b"abc".to_vec(), b"def".to_vec()];
        let other = segments(&mut memory);
        let mut run = Segments::default();
        assert_eq!(run.append_range(&other, 2, 2), 2);
        assert_eq!(run.append_range(&other, 3, 9), 3);
        assert_eq!(run.append_range(&other, 6, 9), 0);
        let mut bytes = [0; 5];
        assert!(run.read_front(&mut bytes));
        assert_eq!(&bytes, b"cddef");
    }

    #[test]
    fn more_pieces_than_a_call_takes_are_transferred_in_turns() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut memory = vec![vec![7; 3]; PIECES_PER_CALL + 5];
        let mut run = segments(&mut memory);
        assert_eq!(run.write_stream(ours.as_fd()).unwrap(), 3 * PIECES_PER_CALL);
        assert_eq!(run.write_stream(ours.as_fd()).unwrap(), 15);
        assert_eq!(run.len(), 0);
        theirs
            .read_exact(&mut vec![0; 3 * PIECES_PER_CALL + 15])
            .unwrap();
        theirs.write_all(&[9; 10]).unwrap();
        let mut run = segments(&mut memory);
        assert_eq!(run.read_stream(ours.as_fd(), 4).unwrap(), 4);
        assert_eq!(run.read_stream(ours.as_fd(), 100).unwrap(), 6);
        drop(run);
        assert_eq!(memory[3], [9, 7, 7]);
    }

    #[test]
    fn an_offset_beyond_any_file_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let mut memory = [vec![0; 8]];
        let mut run = segments(&mut memory);
        assert!(run.read_file(file.as_fd(), u64::MAX, 8).is_err());
        assert!(run.write_file(file.as_fd(), u64::MAX, 8).is_err());
        assert_eq!(run.read_file(file.as_fd(), 0, 8).unwrap(), 0);
    }
}

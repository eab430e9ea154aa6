//! Chains as requests, and replies to them.

use rustix::io::Errno;

use super::wire::{IN_HEADER_LEN, OUT_HEADER_LEN, WRITE_IN_LEN, opcode};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::segments::Segments;

/// Longest arguments of a request, data to write aside: the longest value of an extended attribute
/// (65,536 bytes, `xattr(7)`), its name, and the numbers before them.
const ARGUMENTS_MAX: usize = 66 * 1024;

/// The driver left no room for an answer, or asks nothing: the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a file system request of {0} bytes has no header")]
    NoHeader(usize),
    #[error("a file system request has no room for its reply")]
    NoReply,
}

/// `struct fuse_in_header`, without what the server does not look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The thread that asks, as the guest counts them; 0 for the kernel itself.
    pub(super) thread: u32,
}

/// A request, its data still in guest memory.
#[derive(Debug)]
pub(super) struct Request<'m> {
    pub(super) header: Header,
    /// What the header says about itself is wrong, or the arguments are too long.
    pub(super) arguments: Result<Vec<u8>, Errno>,
    /// What WRITE writes.
    pub(super) data: Segments<'m>,
    /// Room for the reply's header; `None` for a request that has no reply.
    reply: Option<Segments<'m>>,
    /// Room for what follows it.
    pub(super) room: Segments<'m>,
}

/// What a request is answered with.
#[derive(Debug)]
pub(super) enum Reply {
    /// Nothing but success.
    Empty,
    Bytes(Vec<u8>),
    /// So many bytes, which are in the request's room already.
    InPlace(usize),
}

impl<'m> Request<'m> {
    /// Reads the header and the arguments.
    pub(super) fn parse(chain: Chain<'m>) -> Result<Self, Malformed> {
        let Chain {
            mut readable,
            writable,
            ..
        } = chain;
        let length = readable.len();
        let mut bytes = [0; IN_HEADER_LEN];
        if !readable.read_front(&mut bytes) {
            return Err(Malformed::NoHeader(length));
        }
        let u32_at = |at: usize| {
            let field = bytes[at..].first_chunk().expect("inside the header");
            u32::from_le_bytes(*field)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let header = Header {
            opcode: u32_at(4),
            unique: u64_at(8),
            nodeid: u64_at(16),
            uid: u32_at(24),
            gid: u32_at(28),
            thread: u32_at(32),
        };
        let replies = !matches!(
            header.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT
        );
        if replies && writable.len() < OUT_HEADER_LEN {
            return Err(Malformed::NoReply);
        }
        let mut room = Segments::default();
        room.append_range(&writable, OUT_HEADER_LEN, usize::MAX);
        let whole = usize::try_from(u32_at(0)) == Ok(length);
        Ok(Self {
            header,
            arguments: arguments(header.opcode, whole, &mut readable),
            data: readable,
            reply: replies.then_some(writable),
            room,
        })
    }

    /// Writes the reply and returns how many bytes that are.
    pub(super) fn answer(mut self, result: Result<Reply, Errno>) -> u32 {
        let Some(mut reply) = self.reply else {
            return 0;
        };
        let (error, following) = match result {
            Ok(Reply::Empty) => (0, 0),
            Ok(Reply::InPlace(length)) => (0, length),
            Ok(Reply::Bytes(bytes)) if self.room.write_front(&bytes) => (0, bytes.len()),
            // The driver has asked for more than it has room for.
            Ok(Reply::Bytes(_)) => (-Errno::RANGE.raw_os_error(), 0),
            Err(error) => (-error.raw_os_error(), 0),
        };
        let length = u32::try_from(OUT_HEADER_LEN + following)
            .expect("a chain is at most as long as its queue allows");
        let mut header = [0; OUT_HEADER_LEN];
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[4..8].copy_from_slice(&error.to_le_bytes());
        header[8..].copy_from_slice(&self.header.unique.to_le_bytes());
        let written = reply.write_front(&header);
        debug_assert!(written, "the parser checked the room for a header");
        length
    }
}

fn arguments(opcode: u32, whole: bool, readable: &mut Segments<'_>) -> Result<Vec<u8>, Errno> {
    let length = match opcode {
        opcode::WRITE => WRITE_IN_LEN,
        _ => readable.len(),
    };
    if !whole {
        return Err(Errno::INVAL);
    }
    if length > ARGUMENTS_MAX {
        return Err(Errno::TOOBIG);
    }
    let mut arguments = vec![0; length];
    if readable.read_front(&mut arguments) {
        Ok(arguments)
    } else {
        Err(Errno::INVAL)
    }
}

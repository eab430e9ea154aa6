//! What the driver asks for, in bytes (virtio 1.3 section 5.15.6).

use super::Malformed;
use crate::virtio::chain::Chain;

/// `VIRTIO_MEM_REQ_*`.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// `VIRTIO_MEM_RESP_*`.
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// `VIRTIO_MEM_STATE_*`.
const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// `struct virtio_mem_req`: type, padding, address, number of blocks, padding.
const REQUEST_LEN: usize = 24;
/// `struct virtio_mem_resp`: type, padding, state.
const RESPONSE_LEN: u32 = 10;

/// Blocks as the driver names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Guest physical.
    pub(super) address: u64,
    pub(super) count: u16,
}

/// What the driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Blocks),
    Unplug(Blocks),
    UnplugAll,
    State(Blocks),
}

/// What the blocks of a range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlocksState {
    Plugged,
    Unplugged,
    Mixed,
}

/// What the driver is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    State(BlocksState),
    /// More than the driver is asked to have.
    Refused,
    /// The driver is to try again.
    Busy,
    /// No such request, or no such blocks.
    Error,
}

impl Request {
    /// Reads a request off a chain; `None` if there is no such request.
    pub(super) fn read(chain: &mut Chain<'_>) -> Option<Self> {
        let mut bytes = [0; REQUEST_LEN];
        if !chain.readable.read_front(&mut bytes) {
            return None;
        }
        let [
            k0,
            k1,
            _,
            _,
            _,
            _,
            _,
            _,
            address @ ..,
            c0,
            c1,
            _,
            _,
            _,
            _,
            _,
            _,
        ] = bytes;
        let blocks = Blocks {
            address: u64::from_le_bytes(address),
            count: u16::from_le_bytes([c0, c1]),
        };
        match u16::from_le_bytes([k0, k1]) {
            PLUG => Some(Self::Plug(blocks)),
            UNPLUG => Some(Self::Unplug(blocks)),
            UNPLUG_ALL => Some(Self::UnplugAll),
            STATE => Some(Self::State(blocks)),
            _ => None,
        }
    }
}

impl Answer {
    /// Writes it to a chain, and returns its length.
    pub(super) fn write(self, chain: &mut Chain<'_>) -> Result<u32, Malformed> {
        let (kind, state) = match self {
            Self::Done => (ACK, 0),
            Self::State(BlocksState::Plugged) => (ACK, PLUGGED),
            Self::State(BlocksState::Unplugged) => (ACK, UNPLUGGED),
            Self::State(BlocksState::Mixed) => (ACK, MIXED),
            Self::Refused => (NACK, 0),
            Self::Busy => (BUSY, 0),
            Self::Error => (ERROR, 0),
        };
        let mut bytes = [0; RESPONSE_LEN as usize];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        match chain.writable.write_front(&bytes) {
            true => Ok(RESPONSE_LEN),
            false => Err(Malformed::NoRoom),
        }
    }
}

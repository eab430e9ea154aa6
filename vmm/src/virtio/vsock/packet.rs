//! What travels in the queues (virtio 1.2 section 5.10.6).

use crate::virtio::segments::Segments;

/// Length of `struct virtio_vsock_hdr`.
pub(super) const HEADER_LEN: usize = 44;

/// The host's context id (section 5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// The only socket type that the device knows (section 5.10.6.1).
pub(super) const TYPE_STREAM: u16 = 1;

/// Flags of SHUTDOWN: the sender will receive no more (section 5.10.6.6).
pub(super) const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// The sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 1 << 1;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Operations (section 5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Rst = 3,
    Shutdown = 4,
    Rw = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    fn from_wire(op: u16) -> Option<Self> {
        Some(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// A header that the guest sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) ports: Ports,
    /// Length of the payload in bytes.
    pub(super) len: u32,
    pub(super) socket_type: u16,
    /// `None` for an operation that is not known.
    pub(super) op: Option<Op>,
    pub(super) flags: u32,
    pub(super) credit: Credit,
}

/// How much the sender of a packet can take (section 5.10.6.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Credit {
    /// Size of its buffer in bytes.
    pub(super) buf_alloc: u32,
    /// Bytes that have left the buffer so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Received {
    /// Takes a header off the front of a packet; `None` when there is none.
    pub(super) fn take(packet: &mut Segments<'_>) -> Option<Self> {
        let mut bytes = [0; HEADER_LEN];
        if !packet.read_front(&mut bytes) {
            return None;
        }
        Some(Self {
            src_cid: u64::from_le_bytes(field(&bytes, 0)),
            dst_cid: u64::from_le_bytes(field(&bytes, 8)),
            ports: Ports {
                guest: u32::from_le_bytes(field(&bytes, 16)),
                host: u32::from_le_bytes(field(&bytes, 20)),
            },
            len: u32::from_le_bytes(field(&bytes, 24)),
            socket_type: u16::from_le_bytes(field(&bytes, 28)),
            op: Op::from_wire(u16::from_le_bytes(field(&bytes, 30))),
            flags: u32::from_le_bytes(field(&bytes, 32)),
            credit: Credit {
                buf_alloc: u32::from_le_bytes(field(&bytes, 36)),
                fwd_cnt: u32::from_le_bytes(field(&bytes, 40)),
            },
        })
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    *bytes[at..]
        .first_chunk()
        .expect("the field is in the header")
}

/// A header for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) ports: Ports,
    pub(super) op: Op,
    pub(super) socket_type: u16,
    pub(super) flags: u32,
    /// Length of the payload in bytes.
    pub(super) len: u32,
    pub(super) credit: Credit,
}

impl Packet {
    /// A reset in answer to a packet of `socket_type`.
    pub(super) fn reset(ports: Ports, socket_type: u16) -> Self {
        Self {
            ports,
            op: Op::Rst,
            socket_type,
            flags: 0,
            len: 0,
            credit: Credit::default(),
        }
    }

    /// The bytes on the wire, to `guest_cid`.
    pub(super) fn encode(&self, guest_cid: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&HOST_CID.to_le_bytes());
        bytes[8..16].copy_from_slice(&guest_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.ports.host.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.ports.guest.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&(self.op as u16).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.credit.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.credit.fwd_cnt.to_le_bytes());
        bytes
    }
}

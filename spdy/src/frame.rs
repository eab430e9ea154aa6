//! Frames, and how they look on the wire (SPDY/3 section 2.2).
//!
//! ```text
//! control   1 | version (15 bits) | type (16)    data   0 | stream (31 bits)
//!           flags (8) | length (24)                     flags (8) | length (24)
//!           length bytes                                length bytes
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use crate::headers::{self, Headers};

/// The version in control frames; SPDY/3.1 differs from SPDY/3 in flow control only.
pub(crate) const VERSION: u16 = 3;

/// Length of a frame's header, in bytes.
pub(crate) const HEADER_LEN: usize = 8;

/// Set in the first word of a control frame.
pub(crate) const CONTROL: u32 = 1 << 31;

/// The sender will send nothing more on the stream.
pub(crate) const FLAG_FIN: u8 = 1;

/// The other end may send nothing on the stream.
pub(crate) const FLAG_UNIDIRECTIONAL: u8 = 2;

/// Types of control frames (SPDY/3 section 2.6).
pub(crate) mod kind {
    pub(crate) const SYN_STREAM: u16 = 1;
    pub(crate) const SYN_REPLY: u16 = 2;
    pub(crate) const RST_STREAM: u16 = 3;
    pub(crate) const SETTINGS: u16 = 4;
    pub(crate) const PING: u16 = 6;
    pub(crate) const GOAWAY: u16 = 7;
    pub(crate) const HEADERS: u16 = 8;
    pub(crate) const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream was ended at once (SPDY/3 section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetReason {
    /// A frame was wrong.
    ProtocolError = 1,
    /// There is no such stream.
    InvalidStream = 2,
    /// The stream was refused before anything was done with it.
    RefusedStream = 3,
    /// The stream is of no use any more.
    Cancel = 5,
    /// There was data behind the end of the data.
    StreamAlreadyClosed = 9,
}

/// Why a connection ends (SPDY/3 section 2.6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum GoAwayReason {
    /// Everything is said.
    Ok = 0,
    /// The other end broke the protocol.
    ProtocolError = 1,
}

/// A frame as it was received. Types that mean nothing to anybody here are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A stream begins.
    SynStream {
        /// Its number, chosen by the sender.
        stream: u32,
        /// The sender has no data for it.
        fin: bool,
        /// The sender takes no data from it.
        unidirectional: bool,
        /// What it is for.
        headers: Headers,
    },
    /// A stream was accepted.
    SynReply {
        /// Which.
        stream: u32,
        /// The sender has no data for it.
        fin: bool,
    },
    /// A stream ended at once.
    Reset {
        /// Which.
        stream: u32,
        /// A [`ResetReason`], if it is one.
        reason: u32,
    },
    /// Sent back as it came, when the other end asked.
    Ping(u32),
    /// The sender takes no new streams.
    GoAway {
        /// A [`GoAwayReason`], if it is one.
        reason: u32,
    },
    /// More headers for a stream, which nobody here has a use for.
    Headers {
        /// Which.
        stream: u32,
        /// The sender has no more data for it.
        fin: bool,
    },
    /// How much data may be sent on a fresh stream.
    InitialWindow(u32),
    /// More data may be sent.
    WindowUpdate {
        /// On which stream; 0 for all together.
        stream: u32,
        /// How many bytes more.
        delta: u32,
    },
    /// A piece of a data frame, or all of it.
    Data {
        /// On which stream.
        stream: u32,
        /// The bytes.
        bytes: Bytes,
        /// They were the last.
        fin: bool,
    },
}

/// What a server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Accept {
        stream: u32,
    },
    Reset {
        stream: u32,
        reason: ResetReason,
    },
    Ping(u32),
    GoAway {
        last: u32,
        reason: GoAwayReason,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
}

/// Writes frames. Remembers whether its compression has begun.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    headers_sent: bool,
}

impl Encoder {
    /// Appends a frame. Data has at most 16 MiB - 1 bytes.
    pub(crate) fn put(&mut self, reply: &Reply, out: &mut BytesMut) {
        match reply {
            Reply::Accept { stream } => {
                let mut body = BytesMut::new();
                body.put_u32(*stream);
                headers::store(&Headers::default(), !self.headers_sent, &mut body);
                self.headers_sent = true;
                put_control(kind::SYN_REPLY, 0, &body, out);
            }
            Reply::Reset { stream, reason } => {
                put_words(kind::RST_STREAM, &[*stream, *reason as u32], out);
            }
            Reply::Ping(id) => put_words(kind::PING, &[*id], out),
            Reply::GoAway { last, reason } => {
                put_words(kind::GOAWAY, &[*last, *reason as u32], out);
            }
            Reply::WindowUpdate { stream, delta } => {
                put_words(kind::WINDOW_UPDATE, &[*stream, *delta], out);
            }
            Reply::Data { stream, bytes, fin } => put_data(*stream, bytes, *fin, out),
        }
    }
}

fn put_words(kind: u16, words: &[u32], out: &mut BytesMut) {
    let body: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    put_control(kind, 0, &body, out);
}

pub(crate) fn put_control(kind: u16, flags: u8, body: &[u8], out: &mut BytesMut) {
    out.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    out.put_u32(flags_and_len(flags, body.len()));
    out.put_slice(body);
}

pub(crate) fn put_data(stream: u32, bytes: &[u8], fin: bool, out: &mut BytesMut) {
    out.put_u32(stream);
    out.put_u32(flags_and_len(if fin { FLAG_FIN } else { 0 }, bytes.len()));
    out.put_slice(bytes);
}

fn flags_and_len(flags: u8, len: usize) -> u32 {
    let len = u32::try_from(len).expect("frames are cut to far less");
    debug_assert!(len < 1 << 24, "a length has 24 bits");
    u32::from(flags) << 24 | len
}

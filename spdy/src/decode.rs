//! From bytes to frames.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

use crate::frame::{CONTROL, FLAG_FIN, FLAG_UNIDIRECTIONAL, Frame, HEADER_LEN, VERSION, kind};
use crate::headers::{HeaderError, HeaderReader};

/// Longest control frame, in bytes behind its header. Data frames have no limit but the format's:
/// they are handed on in pieces.
pub const CONTROL_MAX: usize = 16 * 1024;

/// Number of the one setting that means something here (SPDY/3 section 2.6.4).
const INITIAL_WINDOW_SIZE: u32 = 7;

/// Length of a setting, in bytes.
const SETTING_LEN: usize = 8;

/// The 31 bits of a stream's number.
const STREAM_BITS: u32 = (1 << 31) - 1;

/// Bytes that are no frame. The connection is of no use behind them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Another version, or another protocol.
    #[error("version {0} of the protocol; only {VERSION} is spoken here")]
    Version(u16),
    /// A control frame over [`CONTROL_MAX`].
    #[error("a control frame of {0} bytes; the limit is {CONTROL_MAX}")]
    TooLong(usize),
    /// A length that its type does not have.
    #[error("{len} bytes are not a control frame of type {kind}")]
    Length {
        /// The type's number.
        kind: u16,
        /// The length that was said.
        len: usize,
    },
    /// Number 0, which no stream has.
    #[error("a frame of type {0} on stream 0")]
    StreamZero(u16),
    /// A stream whose number is even, or not above those before.
    #[error("stream {0} is not the client's next one")]
    StreamNumber(u32),
    /// A block of headers that cannot be read.
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// Bytes that could not be read, or are no frame.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They could not be read.
    #[error("reading from the peer")]
    Io(#[from] io::Error),
    /// They are no frame.
    #[error("the peer broke the protocol")]
    Frame(#[from] FrameError),
}

/// Takes frames off the beginning of what was received.
#[derive(Debug)]
pub struct FrameDecoder {
    headers: HeaderReader,
    data: Option<DataFrame>,
}

/// The data frame in the middle of which the decoder is.
#[derive(Debug)]
struct DataFrame {
    stream: u32,
    fin: bool,
    left: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// For a connection on which nothing was received yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            headers: HeaderReader::new(),
            data: None,
        }
    }

    /// Takes the next frame off `input`; none while more bytes are needed.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; nothing can be decoded behind it.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if self.data.is_some() {
                return Ok(self.data_piece(input));
            }
            if input.len() < HEADER_LEN {
                return Ok(None);
            }
            let mut header = &input[..HEADER_LEN];
            let (first, second) = (header.get_u32(), header.get_u32());
            let [flags, l2, l1, l0] = second.to_be_bytes();
            let len = usize::from(l2) << 16 | usize::from(l1) << 8 | usize::from(l0);
            if first & CONTROL == 0 {
                if first == 0 {
                    return Err(FrameError::StreamZero(0));
                }
                input.advance(HEADER_LEN);
                let fin = flags & FLAG_FIN != 0;
                let (stream, left) = (first, len);
                self.data = Some(DataFrame { stream, fin, left });
                continue;
            }
            let [_, _, k1, k0] = first.to_be_bytes();
            let version = u16::try_from((first & !CONTROL) >> 16).expect("15 bits");
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if len > CONTROL_MAX {
                return Err(FrameError::TooLong(len));
            }
            if input.len() < HEADER_LEN + len {
                return Ok(None);
            }
            input.advance(HEADER_LEN);
            let body = input.split_to(len).freeze();
            let frame = self.control(u16::from_be_bytes([k1, k0]), flags, &body)?;
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// What is there of the data frame that was begun.
    fn data_piece(&mut self, input: &mut BytesMut) -> Option<Frame> {
        let data = self.data.as_mut()?;
        let len = data.left.min(input.len());
        if len == 0 && data.left > 0 {
            return None;
        }
        data.left -= len;
        // A copy: a slice would keep all of the buffer for as long as somebody keeps the piece.
        let bytes = Bytes::copy_from_slice(&input[..len]);
        input.advance(len);
        let last = data.left == 0;
        let (stream, fin) = (data.stream, data.fin && last);
        if last {
            self.data = None;
        }
        Some(Frame::Data { stream, bytes, fin })
    }

    /// Reads a control frame; none for a type that is ignored (SPDY/3 section 2.2.1).
    fn control(&mut self, kind: u16, flags: u8, body: &Bytes) -> Result<Option<Frame>, FrameError> {
        let len = body.len();
        let wrong = FrameError::Length { kind, len };
        let fin = flags & FLAG_FIN != 0;
        let word = |index: usize| -> Option<u32> {
            let mut word = body.get(4 * index..4 * index + 4)?;
            Some(word.get_u32())
        };
        let stream = word(0).map(|word| word & STREAM_BITS);
        let stream = match (kind, stream) {
            (kind::SYN_STREAM | kind::SYN_REPLY | kind::RST_STREAM | kind::HEADERS, Some(0)) => {
                return Err(FrameError::StreamZero(kind));
            }
            (_, Some(stream)) => stream,
            (kind::SETTINGS | kind::PING | kind::GOAWAY | kind::WINDOW_UPDATE, None)
            | (kind::SYN_STREAM | kind::SYN_REPLY | kind::RST_STREAM | kind::HEADERS, None) => {
                return Err(wrong);
            }
            (_, None) => return Ok(None),
        };
        Ok(Some(match (kind, len) {
            (kind::SYN_STREAM, 10..) => Frame::SynStream {
                stream,
                fin,
                unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                // Behind an associated stream and a priority, which nobody here has a use for.
                headers: self.headers.read(&body[10..])?,
            },
            (kind::SYN_REPLY, _) => {
                self.headers.read(&body[4..])?;
                Frame::SynReply { stream, fin }
            }
            (kind::HEADERS, _) => {
                self.headers.read(&body[4..])?;
                Frame::Headers { stream, fin }
            }
            (kind::RST_STREAM, 8) => Frame::Reset {
                stream,
                reason: word(1).ok_or(wrong)?,
            },
            (kind::PING, 4) => Frame::Ping(word(0).ok_or(wrong)?),
            (kind::GOAWAY, 8) => Frame::GoAway {
                reason: word(1).ok_or(wrong)?,
            },
            (kind::WINDOW_UPDATE, 8) => Frame::WindowUpdate {
                stream,
                delta: word(1).ok_or(wrong)? & STREAM_BITS,
            },
            (kind::SETTINGS, _) => return settings(body).ok_or(wrong),
            (kind::SYN_STREAM | kind::RST_STREAM, _)
            | (kind::PING | kind::GOAWAY | kind::WINDOW_UPDATE, _) => return Err(wrong),
            _ => return Ok(None),
        }))
    }
}

/// The one setting that means something here; none when the length is wrong.
fn settings(body: &[u8]) -> Option<Option<Frame>> {
    let (mut count, entries) = body.split_at_checked(4)?;
    let count = usize::try_from(count.get_u32()).ok()?;
    if entries.len() != count.checked_mul(SETTING_LEN)? {
        return None;
    }
    let mut window = None;
    for mut entry in entries.chunks_exact(SETTING_LEN) {
        // Eight bits of flags, then the number.
        if entry.get_u32() & 0x00ff_ffff == INITIAL_WINDOW_SIZE {
            window = Some(Frame::InitialWindow(entry.get_u32()));
        }
    }
    Some(window)
}

impl tokio_util::codec::Decoder for FrameDecoder {
    type Item = Frame;
    type Error = ReadError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, ReadError> {
        Ok(self.next(input)?)
    }
}

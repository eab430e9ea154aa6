//! Framing of process streams.
//!
//! A caller connects to the agent's stream socket and sends one [`Kind::Open`] frame, whose payload
//! is a [`StreamOpen`](crate::agent::StreamOpen). The agent answers [`Kind::Opened`], or
//! [`Kind::Error`] with a sentence, and closes. Then both sides send frames until [`Kind::End`]:
//!
//! ```text
//! caller -> agent   Stdin* StdinClosed? Resize*
//! agent  -> caller  (Stdout | Stderr)* End
//! ```
//!
//! On a connection to a port, `Stdin` is what goes to it and `Stdout` what comes from it. Each side
//! ends alone; a [`Kind::Error`] says that the connection broke.
//!
//! [`Kind::End`] says that every byte of output was delivered; how the process ended is
//! `WaitProcess`'s to tell. A connection that closes without it lost its peer. Back-pressure is the
//! socket's own: who does not read slows the writer down.
//!
//! ```text
//! byte 0     kind
//! bytes 1-4  length of the payload, big-endian, at most MAX_PAYLOAD
//! bytes 5-   payload
//! ```

/// Length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 5;

/// Longest payload, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The caller's request, a `StreamOpen` message.
    Open = 0,
    /// The agent accepts; empty.
    Opened = 1,
    /// The agent refuses, or a connection to a port broke; UTF-8 text.
    Error = 2,
    /// Bytes for the process's standard input.
    Stdin = 3,
    /// The caller has no more input; empty.
    StdinClosed = 4,
    /// Bytes of standard output, or of the terminal.
    Stdout = 5,
    /// Bytes of standard error.
    Stderr = 6,
    /// New terminal size: columns, rows, each a big-endian `u16`.
    Resize = 7,
    /// Every byte of output was delivered; empty.
    End = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Open,
            1 => Self::Opened,
            2 => Self::Error,
            3 => Self::Stdin,
            4 => Self::StdinClosed,
            5 => Self::Stdout,
            6 => Self::Stderr,
            7 => Self::Resize,
            8 => Self::End,
            _ => return None,
        })
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Length of the payload in bytes, at most [`MAX_PAYLOAD`].
    pub len: usize,
}

/// A peer's header that cannot be one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The first byte names no [`Kind`].
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The length is over [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes is over the limit of {MAX_PAYLOAD}")]
    Length(u32),
}

impl Header {
    /// The header's bytes on the wire.
    ///
    /// # Panics
    ///
    /// When `len` is over [`MAX_PAYLOAD`]: the sender's own mistake.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        assert!(
            self.len <= MAX_PAYLOAD,
            "a frame holds at most {MAX_PAYLOAD} bytes"
        );
        let len = u32::try_from(self.len)
            .expect("MAX_PAYLOAD fits in 32 bits")
            .to_be_bytes();
        [self.kind as u8, len[0], len[1], len[2], len[3]]
    }

    /// Reads a header that a peer sent.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] when the kind is unknown or the length too large.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let kind = Kind::from_byte(bytes[0]).ok_or(HeaderError::Kind(bytes[0]))?;
        let len = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        match usize::try_from(len) {
            Ok(len) if len <= MAX_PAYLOAD => Ok(Self { kind, len }),
            _ => Err(HeaderError::Length(len)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encode_then_decode_returns_the_same_header() {
        for byte in 0..=8 {
            let kind = Kind::from_byte(byte).unwrap();
            for len in [0, 1, MAX_PAYLOAD] {
                let header = Header { kind, len };
                assert_eq!(Header::decode(header.encode()), Ok(header));
            }
        }
    }

    #[test]
    fn decode_unknown_kind_returns_error() {
        assert_eq!(Header::decode([9, 0, 0, 0, 0]), Err(HeaderError::Kind(9)));
    }

    #[test]
    fn decode_length_over_limit_returns_error() {
        assert_eq!(
            Header::decode([5, 0, 1, 0, 1]),
            Err(HeaderError::Length(65537))
        );
        assert_eq!(
            Header::decode([5, 255, 255, 255, 255]),
            Err(HeaderError::Length(u32::MAX))
        );
    }
}

//! The messages of `v4.channel.k8s.io` and `v5.channel.k8s.io`: a byte that names the channel, and
//! what goes through it (k8s.io/apimachinery, pkg/util/remotecommand).
//!
//! Both ends are here: the server in `streaming`, and `isopod run` as its client.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Standard input, from the client.
const STDIN: u8 = 0;
/// Standard output, or the terminal.
pub(crate) const STDOUT: u8 = 1;
/// Standard error.
pub(crate) const STDERR: u8 = 2;
/// The Status at the end.
pub(crate) const STATUS: u8 = 3;
/// The terminal's size, from the client.
const RESIZE: u8 = 4;
/// Version 5's signal that a channel has ended; the payload is the channel's number.
const CLOSE: u8 = 255;

/// Longest message that a client may send, in bytes.
pub(crate) const MESSAGE_MAX: usize = 1024 * 1024;

/// Longest JSON text of a terminal's size, in bytes.
const RESIZE_MAX: usize = 256;

/// The sub-protocol that both ends speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// `v4.channel.k8s.io`: standard input ends with the connection.
    V4,
    /// `v5.channel.k8s.io`: standard input can end before.
    V5,
}

impl Version {
    /// The name in `Sec-WebSocket-Protocol`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        }
    }

    /// The newest version among those that a client offers.
    pub(super) fn choose<'a>(offered: impl Iterator<Item = &'a str>) -> Option<Self> {
        offered
            .filter_map(|name| [Self::V4, Self::V5].into_iter().find(|v| v.name() == name))
            .max_by_key(|version| version.name())
    }
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientMessage {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// There is no more input.
    StdinClosed,
    /// The terminal has a new size.
    Resize(TerminalSize),
    /// Nothing: an empty message.
    Nothing,
}

/// A terminal's size in characters; the field names are the protocol's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width")]
    pub(crate) columns: u16,
    /// Rows.
    #[serde(rename = "Height")]
    pub(crate) rows: u16,
}

/// A client's message that means nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ChannelError {
    /// Nobody listens on the channel.
    #[error("channel {0} is not a client's to write to")]
    Channel(u8),
    /// Only standard input can be closed.
    #[error("channel {0:?} is not a client's to close")]
    Close(Option<u8>),
    /// The size is no size.
    #[error("a terminal size is {{\"Width\": columns, \"Height\": rows}}")]
    Size,
}

impl ClientMessage {
    /// Reads a client's message.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] when it means nothing in this version.
    pub(super) fn decode(mut message: Bytes, version: Version) -> Result<Self, ChannelError> {
        if message.is_empty() {
            return Ok(Self::Nothing);
        }
        let channel = message[0];
        let payload = message.split_off(1);
        match channel {
            STDIN => Ok(Self::Stdin(payload)),
            RESIZE if payload.len() <= RESIZE_MAX => match serde_json::from_slice(&payload) {
                Ok(size) => Ok(Self::Resize(size)),
                Err(_) => Err(ChannelError::Size),
            },
            RESIZE => Err(ChannelError::Size),
            CLOSE if version == Version::V5 => match *payload {
                [STDIN] => Ok(Self::StdinClosed),
                _ => Err(ChannelError::Close(payload.first().copied())),
            },
            _ => Err(ChannelError::Channel(channel)),
        }
    }

    /// The message on the wire.
    pub(crate) fn encode(&self) -> Bytes {
        match self {
            Self::Stdin(bytes) => message(STDIN, bytes),
            Self::StdinClosed => message(CLOSE, &[STDIN]),
            Self::Resize(size) => {
                let json = serde_json::to_vec(size).expect("two numbers have a JSON form");
                message(RESIZE, &json)
            }
            Self::Nothing => Bytes::new(),
        }
    }
}

/// A message for one channel.
pub(super) fn message(channel: u8, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(1 + payload.len());
    message.put_u8(channel);
    message.put_slice(payload);
    message.freeze()
}

/// What a target in `fuzz/` calls, and a bounded test with every run.
#[cfg(any(test, fuzzing))]
#[cfg_attr(
    not(fuzzing),
    expect(
        unreachable_pub,
        reason = "the fuzz crate compiles this file as its own"
    )
)]
pub mod fuzz {
    use bytes::Bytes;

    use super::{ClientMessage, Version};

    /// Reads `data` as a client's message in both versions. What version 4 takes, version 5 takes for
    /// the same, and what was read is written so that it is read again.
    pub fn message(data: &[u8]) {
        let decode = |version| ClientMessage::decode(Bytes::copy_from_slice(data), version);
        let (older, newer) = (decode(Version::V4), decode(Version::V5));
        if let Ok(message) = &older {
            assert_eq!(newer.as_ref(), Ok(message));
        }
        if let Ok(message) = newer {
            let again = ClientMessage::decode(message.encode(), Version::V5);
            assert_eq!(again, Ok(message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8], version: Version) -> Result<ClientMessage, ChannelError> {
        ClientMessage::decode(Bytes::copy_from_slice(bytes), version)
    }

    #[test]
    fn encode_then_decode_returns_the_same_message() {
        let size = TerminalSize {
            columns: 80,
            rows: 24,
        };
        for message in [
            ClientMessage::Stdin(Bytes::from_static(b"ls\n")),
            ClientMessage::Stdin(Bytes::new()),
            ClientMessage::StdinClosed,
            ClientMessage::Resize(size),
            ClientMessage::Nothing,
        ] {
            assert_eq!(
                ClientMessage::decode(message.encode(), Version::V5),
                Ok(message)
            );
        }
    }

    #[test]
    fn version_4_has_no_close_signal() {
        assert_eq!(
            decode(&[CLOSE, STDIN], Version::V4),
            Err(ChannelError::Channel(CLOSE))
        );
    }

    #[test]
    fn only_stdin_can_be_closed() {
        assert_eq!(
            decode(&[CLOSE, STDOUT], Version::V5),
            Err(ChannelError::Close(Some(STDOUT)))
        );
        assert_eq!(
            decode(&[CLOSE], Version::V5),
            Err(ChannelError::Close(None))
        );
        assert_eq!(
            decode(&[CLOSE, 0, 0], Version::V5),
            Err(ChannelError::Close(Some(0)))
        );
    }

    #[test]
    fn size_that_is_none_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            "{\"Width\":-1,\"Height\":2}",
            "{\"Width\":65536,\"Height\":2}",
        ] {
            let message = message(RESIZE, text.as_bytes());
            assert_eq!(
                ClientMessage::decode(message, Version::V5),
                Err(ChannelError::Size),
                "{text}"
            );
        }
        let long = message(RESIZE, &[b' '; RESIZE_MAX + 1]);
        assert_eq!(
            ClientMessage::decode(long, Version::V5),
            Err(ChannelError::Size)
        );
    }

    #[test]
    fn newest_common_version_is_chosen() {
        let choose = |offered: &[&str]| Version::choose(offered.iter().copied());
        assert_eq!(
            choose(&["v4.channel.k8s.io", "v5.channel.k8s.io"]),
            Some(Version::V5)
        );
        assert_eq!(
            choose(&["channel.k8s.io", "v4.channel.k8s.io"]),
            Some(Version::V4)
        );
        assert_eq!(
            choose(&["base64.channel.k8s.io", "V5.CHANNEL.K8S.IO"]),
            None
        );
        assert_eq!(choose(&[]), None);
    }

    proptest::proptest! {
        #[test]
        fn any_message_is_read_or_refused(bytes in proptest::collection::vec(0_u8.., 0..300)) {
            fuzz::message(&bytes);
        }

        #[test]
        fn any_message_to_a_channel_is_read_or_refused(
            channel in proptest::sample::select(vec![STDIN, STDERR, STATUS, RESIZE, CLOSE]),
            text in "[{}:\",WidthHeg0-9 -]{0,40}",
        ) {
            fuzz::message(&message(channel, text.as_bytes()));
        }
    }
}

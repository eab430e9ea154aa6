//! A container's output as the agent sends it (`isopod_proto::stream`). All of it is hostile input.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use isopod_proto::STREAM_PORT;
use isopod_proto::agent::{StreamOpen, StreamRole};
use isopod_proto::stream::{HEADER_LEN, Header, HeaderError, Kind, MAX_PAYLOAD};
use protobuf::Message;

use super::lines::Output;
use crate::virtio::vsock::{ConnectError, VsockHandle};

/// How long the guest may take to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the agent may take to answer the request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of the agent's refusal that are passed on.
const REFUSAL_MAX: usize = 1024;

/// Bytes that are read at once.
const READ_LEN: usize = HEADER_LEN + MAX_PAYLOAD;

/// The agent's stream could not be opened, or broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The agent's stream port could not be reached.
    #[error("connecting to the agent's stream port")]
    Connect(#[source] ConnectError),
    /// The agent said no.
    #[error("the agent refuses the stream: {0}")]
    Refused(String),
    /// A frame cannot be one.
    #[error("the agent sent a malformed frame")]
    Malformed(#[source] HeaderError),
    /// A frame that has no place where it came.
    #[error("the agent sent a frame of kind {0:?} out of place")]
    OutOfPlace(Kind),
    /// The connection ended too early.
    #[error("the connection to the agent was lost")]
    Lost,
    /// Reading or writing failed, or the agent took too long to answer.
    #[error("talking to the agent's stream port")]
    Socket(#[source] std::io::Error),
}

impl From<std::io::Error> for StreamError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == ErrorKind::UnexpectedEof {
            Self::Lost
        } else {
            Self::Socket(error)
        }
    }
}

/// Asks the agent for all output of the container's first process. Blocks, for
/// [`CONNECT_TIMEOUT`] and [`ANSWER_TIMEOUT`] at most.
///
/// # Errors
///
/// [`StreamError`] when the agent cannot be reached, refuses or does not follow the protocol.
pub(super) fn open(vsock: &VsockHandle, container_id: &str) -> Result<UnixStream, StreamError> {
    let mut stream = vsock
        .connect(STREAM_PORT, CONNECT_TIMEOUT)
        .map_err(StreamError::Connect)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut request = StreamOpen::new();
    request.container_id = container_id.to_owned();
    request.role = StreamRole::STREAM_ROLE_PRIMARY.into();
    let payload = request
        .write_to_bytes()
        .expect("a message without required fields can be written to memory");
    let header = Header {
        kind: Kind::Open,
        len: payload.len(),
    };
    stream.write_all(&[&header.encode()[..], &payload].concat())?;
    answer(&mut stream)?;
    stream.set_read_timeout(None)?;
    Ok(stream)
}

fn answer(stream: &mut UnixStream) -> Result<(), StreamError> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let header = Header::decode(header).map_err(StreamError::Malformed)?;
    match header.kind {
        Kind::Opened if header.len == 0 => Ok(()),
        Kind::Error => {
            let mut text = vec![0; header.len.min(REFUSAL_MAX)];
            stream.read_exact(&mut text)?;
            let text = String::from_utf8_lossy(&text).escape_debug().to_string();
            Err(StreamError::Refused(text))
        }
        kind => Err(StreamError::OutOfPlace(kind)),
    }
}

/// A piece of what the container wrote.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Bytes of one of the outputs, as they came.
    Bytes(Output, &'a [u8]),
    /// There is no more; every byte was delivered.
    End,
}

/// Reads an open stream.
#[derive(Debug)]
pub(super) struct Pieces {
    stream: UnixStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The frame that is being read, and how much of its payload is to come.
    frame: Option<(Output, usize)>,
}

impl Pieces {
    /// Reads `stream` from its current position.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            buffer: vec![0; READ_LEN].into_boxed_slice(),
            start: 0,
            end: 0,
            frame: None,
        }
    }

    /// Waits for more output. A payload is handed out as it arrives, not when it is complete: a
    /// guest that dies loses none of what it sent.
    ///
    /// # Errors
    ///
    /// [`StreamError`] when the stream broke; nothing more can be read.
    pub(super) fn next(&mut self) -> Result<Piece<'_>, StreamError> {
        loop {
            if let Some((output, missing)) = self.frame {
                if missing == 0 {
                    self.frame = None;
                    continue;
                }
                if self.start == self.end {
                    self.fill()?;
                }
                let len = missing.min(self.end - self.start);
                let bytes = &self.buffer[self.start..self.start + len];
                self.start += len;
                self.frame = Some((output, missing - len));
                return Ok(Piece::Bytes(output, bytes));
            }
            if let Some(header) = self.buffer[self.start..self.end].first_chunk::<HEADER_LEN>() {
                let header = Header::decode(*header).map_err(StreamError::Malformed)?;
                self.start += HEADER_LEN;
                match header.kind {
                    Kind::Stdout => self.frame = Some((Output::Stdout, header.len)),
                    Kind::Stderr => self.frame = Some((Output::Stderr, header.len)),
                    Kind::End if header.len == 0 => return Ok(Piece::End),
                    kind => return Err(StreamError::OutOfPlace(kind)),
                }
            } else {
                self.fill()?;
            }
        }
    }

    fn fill(&mut self) -> Result<(), StreamError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(StreamError::Lost),
                Ok(len) => {
                    self.end += len;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

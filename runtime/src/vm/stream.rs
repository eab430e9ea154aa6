//! A process's standard streams, over one connection to the agent's stream port.

use bytes::Bytes;
use isopod_proto::agent::StreamOpen;
use isopod_proto::stream::{HEADER_LEN, Header, HeaderError, Kind, MAX_PAYLOAD};
use protobuf::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::error::printable;

/// What can go wrong on a process's streams.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The connection broke.
    #[error("the stream connection broke")]
    Io(#[from] std::io::Error),
    /// The agent closed the connection before it had delivered everything.
    #[error("the stream ended before the process's output did")]
    Truncated,
    /// The agent refused the request.
    #[error("the agent refused the stream: {0}")]
    Refused(String),
    /// The agent sent something that is no frame.
    #[error("the agent sent a malformed frame")]
    Header(#[from] HeaderError),
    /// The agent sent a frame that has no place here.
    #[error("the agent sent an unexpected {0:?} frame")]
    Unexpected(Kind),
    /// The request does not fit in a frame.
    #[error("the stream request cannot be encoded")]
    Encode,
}

impl StreamError {
    fn refused(text: &[u8]) -> Self {
        Self::Refused(printable(&String::from_utf8_lossy(text)))
    }
}

/// Output of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// From standard output, or from the terminal.
    Stdout(Bytes),
    /// From standard error.
    Stderr(Bytes),
}

/// Both directions of a process's streams.
#[derive(Debug)]
pub(crate) struct ProcessStream {
    output: ProcessOutput,
    input: ProcessInput,
}

/// What the process writes.
#[derive(Debug)]
pub(crate) struct ProcessOutput {
    reader: OwnedReadHalf,
}

/// What the process reads, and the size of its terminal. Dropping it leaves the process's standard
/// input open for the next stream, unless it was asked to close with the first.
#[derive(Debug)]
pub(crate) struct ProcessInput {
    writer: OwnedWriteHalf,
}

impl ProcessStream {
    /// Asks for a process's streams on a fresh connection to the agent's stream port.
    ///
    /// # Errors
    ///
    /// [`StreamError::Refused`] when the agent does not know the process or already has a primary
    /// sink for it; the others when the connection breaks.
    pub(crate) async fn open(
        connection: UnixStream,
        request: &StreamOpen,
    ) -> Result<Self, StreamError> {
        let payload = request
            .write_to_bytes()
            .map_err(|_error| StreamError::Encode)?;
        if payload.len() > MAX_PAYLOAD {
            return Err(StreamError::Encode);
        }
        let (reader, writer) = connection.into_split();
        let mut stream = Self {
            output: ProcessOutput { reader },
            input: ProcessInput { writer },
        };
        stream.input.send(Kind::Open, &payload).await?;
        match stream.output.frame().await? {
            Some((Kind::Opened, _)) => Ok(stream),
            Some((Kind::Error, text)) => Err(StreamError::refused(&text)),
            Some((kind, _)) => Err(StreamError::Unexpected(kind)),
            None => Err(StreamError::Truncated),
        }
    }

    /// The two directions, for two tasks.
    pub(crate) fn split(self) -> (ProcessOutput, ProcessInput) {
        (self.output, self.input)
    }
}

impl ProcessOutput {
    /// The next piece of output, at most [`MAX_PAYLOAD`] bytes; `None` when every byte has been
    /// delivered. Not cancellation-safe: a dropped call may lose the beginning of a frame.
    ///
    /// # Errors
    ///
    /// [`StreamError::Truncated`] when the connection closes before the output has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Output>, StreamError> {
        match self.frame().await? {
            Some((Kind::Stdout, bytes)) => Ok(Some(Output::Stdout(bytes))),
            Some((Kind::Stderr, bytes)) => Ok(Some(Output::Stderr(bytes))),
            Some((Kind::End, _)) => Ok(None),
            Some((Kind::Error, text)) => Err(StreamError::refused(&text)),
            Some((kind, _)) => Err(StreamError::Unexpected(kind)),
            None => Err(StreamError::Truncated),
        }
    }

    /// One frame; `None` at a clean end of the connection.
    async fn frame(&mut self) -> Result<Option<(Kind, Bytes)>, StreamError> {
        let mut header = [0; HEADER_LEN];
        if self.reader.read(&mut header[..1]).await? == 0 {
            return Ok(None);
        }
        self.reader.read_exact(&mut header[1..]).await?;
        let header = Header::decode(header)?;
        let mut payload = vec![0; header.len];
        self.reader.read_exact(&mut payload).await?;
        Ok(Some((header.kind, payload.into())))
    }
}

impl ProcessInput {
    /// Writes to the process's standard input. Waits while the process does not read.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            self.send(Kind::Stdin, chunk).await?;
        }
        Ok(())
    }

    /// Lets the process read end-of-file.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub(crate) async fn close(&mut self) -> Result<(), StreamError> {
        self.send(Kind::StdinClosed, &[]).await
    }

    /// Sets the size of the process's terminal, in characters.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub(crate) async fn resize(&mut self, columns: u16, rows: u16) -> Result<(), StreamError> {
        let [c0, c1] = columns.to_be_bytes();
        let [r0, r1] = rows.to_be_bytes();
        self.send(Kind::Resize, &[c0, c1, r0, r1]).await
    }

    async fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<(), StreamError> {
        let mut frame = Vec::with_capacity(HEADER_LEN + payload.len());
        frame.extend_from_slice(
            &Header {
                kind,
                len: payload.len(),
            }
            .encode(),
        );
        frame.extend_from_slice(payload);
        self.writer.write_all(&frame).await?;
        Ok(())
    }
}

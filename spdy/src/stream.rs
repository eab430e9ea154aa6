//! A stream's two directions.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::frame::{Reply, ResetReason};
use crate::shared::{Gone, Piece, Shared};

/// Most data in a frame of ours, in bytes.
const DATA_MAX: usize = 64 * 1024;

/// The peer ended the stream at once, or the connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer ended the stream, or is gone")]
pub struct StreamError;

impl From<Gone> for StreamError {
    fn from(Gone: Gone) -> Self {
        Self
    }
}

/// A stream that the peer opened and that was accepted. Dropped before it was finished, it is reset.
#[derive(Debug)]
pub struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
}

/// What the peer sends on a stream.
#[derive(Debug)]
pub struct StreamReader {
    handle: Arc<Handle>,
    inbox: mpsc::UnboundedReceiver<Piece>,
    /// The room of the piece that was handed out last, and its length.
    held: Option<(OwnedSemaphorePermit, usize)>,
    /// Bytes that were consumed and that the peer was not told of.
    consumed: usize,
    ended: bool,
}

/// What the peer gets on a stream.
#[derive(Debug)]
pub struct StreamWriter {
    handle: Arc<Handle>,
}

/// The stream is of use while one of its directions is.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    id: u32,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.abandon(self.id, ResetReason::Cancel);
    }
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>, id: u32, inbox: mpsc::UnboundedReceiver<Piece>) -> Self {
        let handle = Arc::new(Handle { shared, id });
        Self {
            reader: StreamReader {
                handle: Arc::clone(&handle),
                inbox,
                held: None,
                consumed: 0,
                ended: false,
            },
            writer: StreamWriter { handle },
        }
    }

    /// The two directions, for two tasks.
    #[must_use]
    pub fn split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }
}

impl StreamReader {
    /// The next piece; none when the peer has no more. A piece counts as consumed when the next one
    /// is asked for. Cancellation-safe.
    ///
    /// # Errors
    ///
    /// [`StreamError`] when the peer ended the stream at once, or the connection.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        self.release();
        if self.ended {
            return Ok(None);
        }
        match self.inbox.recv().await {
            Some(Piece::Data(bytes, room)) => {
                self.held = Some((room, bytes.len()));
                Ok(Some(bytes))
            }
            Some(Piece::Fin) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(StreamError),
        }
    }

    fn release(&mut self) {
        if let Some((room, len)) = self.held.take() {
            drop(room);
            let Handle { shared, id } = &*self.handle;
            shared.consumed(*id, len, &mut self.consumed);
        }
    }
}

impl StreamWriter {
    /// Sends bytes. Waits while the peer takes none. Not cancellation-safe: a dropped call may have
    /// sent a part.
    ///
    /// # Errors
    ///
    /// [`StreamError`] when the peer ended the stream at once, or the connection.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), StreamError> {
        let Handle { shared, id } = &*self.handle;
        while !bytes.is_empty() {
            let room = shared.window(*id, bytes.len().min(DATA_MAX)).await?;
            self.data(bytes.split_to(room), false).await?;
        }
        Ok(())
    }

    /// Tells the peer that it has everything. It may still send.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        let Handle { shared, id } = &*self.handle;
        shared.finish(*id)?;
        self.data(Bytes::new(), true).await
    }

    /// Ends both directions at once, behind what was written.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub async fn reset(&mut self) -> Result<(), StreamError> {
        let Handle { shared, id } = &*self.handle;
        shared.remove(*id).ok_or(StreamError)?;
        let (stream, reason) = (*id, ResetReason::Cancel);
        let sent = shared.data.send(Reply::Reset { stream, reason }).await;
        sent.map_err(|_ended| StreamError)
    }

    async fn data(&self, bytes: Bytes, fin: bool) -> Result<(), StreamError> {
        let Handle { shared, id } = &*self.handle;
        let stream = *id;
        let sent = shared.data.send(Reply::Data { stream, bytes, fin }).await;
        sent.map_err(|_ended| StreamError)
    }
}

//! A connection, from the first frame to the last.

use std::io;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::codec::FramedRead;

use crate::decode::{FrameDecoder, FrameError, ReadError};
use crate::frame::{Frame, GoAwayReason, Reply, ResetReason};
use crate::headers::Headers;
use crate::shared::{INBOUND_MAX, Open, Piece, Shared};
use crate::stream::Stream;
use crate::write::{Queues, write};

/// Room for received bytes that are no frame yet.
const READ_BUFFER: usize = 64 * 1024;

/// Pieces of data that wait to be written.
const DATA_QUEUE: usize = 4;

/// New streams that wait to be accepted.
const INCOMING_QUEUE: usize = 16;

/// The server's end of a connection. Dropped, it ends at once.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Incoming>,
    reader: Option<JoinHandle<Result<(), ReadError>>>,
    writer: Option<JoinHandle<io::Result<()>>>,
    tasks: [AbortHandle; 2],
}

/// A stream that the peer opened. Dropped, it is refused.
#[derive(Debug)]
pub struct Incoming {
    id: u32,
    headers: Headers,
    shared: Arc<Shared>,
    /// What becomes of it: taken when it was accepted.
    pending: Option<(mpsc::UnboundedReceiver<Piece>, OwnedSemaphorePermit)>,
}

impl Connection {
    /// Takes over a connection on which the next byte is SPDY's, with at most `streams_max` streams
    /// open at a time. Must be called on a runtime.
    pub fn start<T>(io: T, streams_max: usize) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (urgent, urgent_queue) = mpsc::unbounded_channel();
        let (data, data_queue) = mpsc::channel(DATA_QUEUE);
        let shared = Arc::new(Shared::new(urgent, data));
        let (read_half, write_half) = tokio::io::split(io);
        let queues = Queues {
            urgent: urgent_queue,
            data: data_queue,
        };
        let writer = tokio::spawn(write(write_half, queues, Arc::clone(&shared)));
        let (announce, incoming) = mpsc::channel(INCOMING_QUEUE);
        let reader = Reader {
            shared: Arc::clone(&shared),
            announce: Some(announce),
            streams_max,
        };
        let reader = tokio::spawn(reader.run(read_half));
        let tasks = [reader.abort_handle(), writer.abort_handle()];
        Self {
            shared,
            incoming,
            reader: Some(reader),
            writer: Some(writer),
            tasks,
        }
    }

    /// The next stream that the peer opens; none when it will open no more. Cancellation-safe.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Waits until the peer is gone, and refuses every stream. Cancellation-safe.
    ///
    /// # Errors
    ///
    /// [`ReadError`] when it broke the protocol, or the connection broke.
    pub async fn gone(&mut self) -> Result<(), ReadError> {
        let Some(reader) = &mut self.reader else {
            return Ok(());
        };
        let mut open = true;
        let ended = loop {
            tokio::select! {
                ended = &mut *reader => break ended,
                refused = self.incoming.recv(), if open => open = refused.is_some(),
            }
        };
        self.reader = None;
        ended.unwrap_or_else(|stopped| Err(ReadError::Io(io::Error::other(stopped))))
    }

    /// Tells the peer that this was all, behind what was written, and waits until it has been sent.
    /// [`gone`](Self::gone) is to follow: what the peer has not read yet could be lost otherwise.
    pub async fn finish(&mut self) {
        self.incoming.close();
        // What the peer still sends is let go, so that its goodbye is reached.
        self.shared.inbound.close();
        let last = self.shared.streams().newest;
        let reason = GoAwayReason::Ok;
        // An error says that the writer has ended, which is what is waited for.
        let _ended = self.shared.data.send(Reply::GoAway { last, reason }).await;
        if let Some(writer) = &mut self.writer {
            // The reader tells of a broken connection.
            let _result = writer.await;
            self.writer = None;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.remove_all();
    }
}

impl Incoming {
    /// What the peer says it is for.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The stream's number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Accepts it.
    #[must_use]
    pub fn accept(mut self) -> (Headers, Stream) {
        let (inbox, room) = self.pending.take().expect("taken here only, and consumed");
        self.shared
            .send(Reply::Accept { stream: self.id }, Some(room));
        let stream = Stream::new(Arc::clone(&self.shared), self.id, inbox);
        (mem::take(&mut self.headers), stream)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some((_inbox, room)) = self.pending.take() {
            self.shared.remove(self.id);
            let (stream, reason) = (self.id, ResetReason::RefusedStream);
            self.shared
                .send(Reply::Reset { stream, reason }, Some(room));
        }
    }
}

/// The task that reads.
struct Reader {
    shared: Arc<Shared>,
    /// None when the peer opens no more streams.
    announce: Option<mpsc::Sender<Incoming>>,
    streams_max: usize,
}

impl Reader {
    async fn run(mut self, io: impl AsyncRead + Unpin) -> Result<(), ReadError> {
        let lost = self.shared.lost.clone();
        let read = lost.run_until_cancelled(self.read(io)).await;
        let result = read.unwrap_or(Ok(()));
        if let Err(ReadError::Frame(_)) = result {
            let last = self.shared.streams().newest;
            let reason = GoAwayReason::ProtocolError;
            self.shared.send(Reply::GoAway { last, reason }, None);
        }
        self.shared.remove_all();
        result
    }

    async fn read(&mut self, io: impl AsyncRead + Unpin) -> Result<(), ReadError> {
        let mut frames = FramedRead::with_capacity(io, FrameDecoder::new(), READ_BUFFER);
        while let Some(frame) = frames.next().await {
            self.handle(frame?).await?;
        }
        Ok(())
    }

    async fn handle(&mut self, frame: Frame) -> Result<(), FrameError> {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => self.open(stream, (fin, unidirectional), headers).await?,
            Frame::Data { stream, bytes, fin } => {
                if !bytes.is_empty() {
                    self.data(stream, bytes).await;
                }
                if fin {
                    self.fin(stream);
                }
            }
            Frame::Headers { stream, fin: true } => self.fin(stream),
            Frame::Reset { stream, .. } => drop(self.shared.remove(stream)),
            // A client's pings have odd numbers; the others are answers to ours.
            Frame::Ping(id) if id % 2 == 1 => {
                let room = self.room().await;
                self.shared.send(Reply::Ping(id), room);
            }
            Frame::GoAway { .. } => self.announce = None,
            Frame::InitialWindow(size) => self.shared.set_initial_window(size),
            Frame::WindowUpdate { stream, delta } => self.shared.widen(stream, delta),
            // We open no streams, so there are no replies.
            Frame::Ping(_) | Frame::SynReply { .. } | Frame::Headers { .. } => {}
        }
        Ok(())
    }

    /// Room for an answer. Waits while the peer does not read the ones before.
    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.answers).acquire_owned().await.ok()
    }

    async fn open(
        &mut self,
        stream: u32,
        (fin, unidirectional): (bool, bool),
        headers: Headers,
    ) -> Result<(), FrameError> {
        let full = {
            let mut streams = self.shared.streams();
            if stream.is_multiple_of(2) || stream <= streams.newest {
                return Err(FrameError::StreamNumber(stream));
            }
            streams.newest = stream;
            streams.open.len() >= self.streams_max
        };
        let room = self.room().await;
        let (announce, room) = match (&self.announce, room) {
            (Some(announce), Some(room)) if !full => (announce, room),
            (_, room) => {
                let reason = ResetReason::RefusedStream;
                self.shared.send(Reply::Reset { stream, reason }, room);
                return Ok(());
            }
        };
        let (sender, inbox) = mpsc::unbounded_channel();
        if fin {
            let _open = sender.send(Piece::Fin);
        }
        self.shared.add(stream, |window| {
            Open::new((!fin).then_some(sender), unidirectional, window)
        });
        let incoming = Incoming {
            id: stream,
            headers,
            shared: Arc::clone(&self.shared),
            pending: Some((inbox, room)),
        };
        // An error drops it, which refuses it.
        let _refused = announce.send(incoming).await;
        Ok(())
    }

    async fn data(&self, stream: u32, bytes: Bytes) {
        let len = bytes.len();
        let inbox = {
            let streams = self.shared.streams();
            let known = stream <= streams.newest;
            match streams.open.get(&stream) {
                Some(open) => open.inbox.clone().ok_or(ResetReason::StreamAlreadyClosed),
                None if known => {
                    // It was on its way when the stream ended.
                    drop(streams);
                    return self.shared.consumed_of_all(len);
                }
                None => Err(ResetReason::InvalidStream),
            }
        };
        match inbox {
            Ok(inbox) => {
                let count = u32::try_from(len.min(INBOUND_MAX)).expect("it is far less");
                let inbound = Arc::clone(&self.shared.inbound);
                // An error says that the connection is about to be closed.
                let room = inbound.acquire_many_owned(count).await.ok();
                let kept = room.is_some_and(|room| inbox.send(Piece::Data(bytes, room)).is_ok());
                if !kept {
                    // Nobody reads it: the stream is there for its writer only.
                    self.shared.consumed_of_all(len);
                }
            }
            Err(reason) => {
                let room = self.room().await;
                self.shared.remove(stream);
                self.shared.send(Reply::Reset { stream, reason }, room);
            }
        }
    }

    fn fin(&self, stream: u32) {
        let mut streams = self.shared.streams();
        let Some(open) = streams.open.get_mut(&stream) else {
            return;
        };
        if let Some(inbox) = open.inbox.take() {
            let _unread = inbox.send(Piece::Fin);
        }
        if open.finished {
            streams.open.remove(&stream);
        }
    }
}

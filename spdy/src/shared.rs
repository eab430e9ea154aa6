//! What the tasks of a connection and the users of its streams share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::frame::{Reply, ResetReason};

/// Most bytes that were received and that nobody has consumed, on all streams of a connection.
pub const INBOUND_MAX: usize = 512 * 1024;

/// Most answers to the peer's frames that wait to be written.
pub const ANSWERS_MAX: usize = 64;

/// Most widened windows that wait to be written: two for each of some hundred streams.
const UPDATES_MAX: usize = 1024;

/// A window before anybody says otherwise, in bytes (SPDY/3 section 2.6.4).
const INITIAL_WINDOW: i64 = 64 * 1024;

/// How much is consumed before the peer's window is widened again: half of it.
pub(crate) const UPDATE_AT: usize = 32 * 1024;

/// A frame that goes first, and the room that it takes among the answers.
#[derive(Debug)]
pub(crate) struct Urgent {
    pub(crate) reply: Reply,
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// What a stream's reader gets.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Bytes, and the room that they take.
    Data(Bytes, OwnedSemaphorePermit),
    /// There are no more.
    Fin,
}

/// A stream that is open in one direction at least.
#[derive(Debug)]
pub(crate) struct Open {
    /// Where its data goes; none when the peer has no more.
    pub(crate) inbox: Option<mpsc::UnboundedSender<Piece>>,
    /// We have no more.
    pub(crate) finished: bool,
    /// How much the peer lets us send.
    window: i64,
}

#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) open: HashMap<u32, Open>,
    /// The newest stream of the peer's.
    pub(crate) newest: u32,
    /// The peer has spoken of windows, so it keeps them.
    keeps_windows: bool,
    initial_window: i64,
    /// How much the peer lets us send on all streams together.
    window: i64,
    /// Consumed since the peer was last told.
    consumed: usize,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) urgent: mpsc::UnboundedSender<Urgent>,
    pub(crate) data: mpsc::Sender<Reply>,
    streams: Mutex<Streams>,
    /// A window was widened, or a stream ended.
    changed: Notify,
    /// Room for what was received.
    pub(crate) inbound: Arc<Semaphore>,
    /// Room for answers.
    pub(crate) answers: Arc<Semaphore>,
    updates: Arc<Semaphore>,
    /// Nothing can be written any more.
    pub(crate) lost: CancellationToken,
}

/// A stream that has ended, or a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl Shared {
    pub(crate) fn new(urgent: mpsc::UnboundedSender<Urgent>, data: mpsc::Sender<Reply>) -> Self {
        Self {
            urgent,
            data,
            streams: Mutex::new(Streams {
                open: HashMap::new(),
                newest: 0,
                keeps_windows: false,
                initial_window: INITIAL_WINDOW,
                window: INITIAL_WINDOW,
                consumed: 0,
            }),
            changed: Notify::new(),
            inbound: Arc::new(Semaphore::new(INBOUND_MAX)),
            answers: Arc::new(Semaphore::new(ANSWERS_MAX)),
            updates: Arc::new(Semaphore::new(UPDATES_MAX)),
            lost: CancellationToken::new(),
        }
    }

    /// Nothing is left half-done under the lock.
    pub(crate) fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame that goes first. When the writer is gone, so is the need for it.
    pub(crate) fn send(&self, reply: Reply, room: Option<OwnedSemaphorePermit>) {
        let _gone = self.urgent.send(Urgent { reply, _room: room });
    }

    /// Adds a stream that the peer has opened.
    pub(crate) fn add(&self, stream: u32, open: impl FnOnce(i64) -> Open) {
        let mut streams = self.streams();
        let open = open(streams.initial_window);
        streams.open.insert(stream, open);
    }

    /// Forgets a stream: whoever reads from it or writes to it learns so.
    pub(crate) fn remove(&self, stream: u32) -> Option<Open> {
        let removed = self.streams().open.remove(&stream);
        self.changed.notify_waiters();
        removed
    }

    /// Forgets them all.
    pub(crate) fn remove_all(&self) {
        let removed = std::mem::take(&mut self.streams().open);
        drop(removed);
        self.changed.notify_waiters();
    }

    /// Nobody here has a use for the stream any more. The peer is told, unless it was told that we
    /// have finished: a reset would overtake our last bytes.
    pub(crate) fn abandon(&self, stream: u32, reason: ResetReason) {
        if self.remove(stream).is_some_and(|open| !open.finished) {
            self.send(Reply::Reset { stream, reason }, None);
        }
    }

    /// We have no more for the stream.
    pub(crate) fn finish(&self, stream: u32) -> Result<(), Gone> {
        let mut streams = self.streams();
        let open = streams.open.get_mut(&stream).ok_or(Gone)?;
        open.finished = true;
        if open.inbox.is_none() {
            streams.open.remove(&stream);
        }
        Ok(())
    }

    /// Waits until something may be sent on the stream, and takes at most `want` bytes of that.
    pub(crate) async fn window(&self, stream: u32, want: usize) -> Result<usize, Gone> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let room = self.streams().take_window(stream, want)?;
            if room > 0 {
                return Ok(room);
            }
            changed.await;
        }
    }

    /// The peer lets us send more: on a stream, or for 0 on all together.
    pub(crate) fn widen(&self, stream: u32, delta: u32) {
        let mut streams = self.streams();
        streams.keeps_windows = true;
        let window = match stream {
            0 => Some(&mut streams.window),
            _ => streams.open.get_mut(&stream).map(|open| &mut open.window),
        };
        if let Some(window) = window {
            *window = window.saturating_add(delta.into());
        }
        drop(streams);
        self.changed.notify_waiters();
    }

    /// The peer's fresh streams begin with this window, and those that are open change by as much.
    pub(crate) fn set_initial_window(&self, size: u32) {
        let mut streams = self.streams();
        streams.keeps_windows = true;
        let change = i64::from(size) - streams.initial_window;
        streams.initial_window += change;
        for open in streams.open.values_mut() {
            open.window = open.window.saturating_add(change);
        }
        drop(streams);
        self.changed.notify_waiters();
    }

    /// Somebody consumed what came on a stream; `since` counts what the peer has not been told.
    pub(crate) fn consumed(&self, stream: u32, len: usize, since: &mut usize) {
        *since += len;
        self.tell(stream, since);
        self.consumed_of_all(len);
    }

    /// The same for all streams together.
    pub(crate) fn consumed_of_all(&self, len: usize) {
        let mut streams = self.streams();
        streams.consumed += len;
        self.tell(0, &mut streams.consumed);
    }

    /// Widens the peer's window when it is half used up. When too much waits to be written, the next
    /// time will do.
    fn tell(&self, stream: u32, since: &mut usize) {
        if *since < UPDATE_AT {
            return;
        }
        let Ok(room) = Arc::clone(&self.updates).try_acquire_owned() else {
            return;
        };
        let delta = u32::try_from(*since).unwrap_or(u32::MAX);
        self.send(Reply::WindowUpdate { stream, delta }, Some(room));
        *since = 0;
    }
}

impl Open {
    pub(crate) fn new(
        inbox: Option<mpsc::UnboundedSender<Piece>>,
        finished: bool,
        window: i64,
    ) -> Self {
        Self {
            inbox,
            finished,
            window,
        }
    }
}

impl Streams {
    fn take_window(&mut self, stream: u32, want: usize) -> Result<usize, Gone> {
        let open = self.open.get_mut(&stream).filter(|open| !open.finished);
        let open = open.ok_or(Gone)?;
        let room = match self.keeps_windows {
            true => usize::try_from(open.window.min(self.window)).unwrap_or(0),
            false => want,
        };
        let room = room.min(want);
        let taken = i64::try_from(room).unwrap_or(i64::MAX);
        open.window -= taken;
        self.window -= taken;
        Ok(room)
    }
}

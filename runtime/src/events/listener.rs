//! One listener's queue, bounded in events and bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use isopod_proto::cri::ContainerEventResponse;
use tokio::sync::mpsc;

/// Why somebody cannot listen, or not any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EventsError {
    /// Too many do.
    #[error("{0} listen to events, which are the most at a time")]
    TooMany(usize),
    /// Events were lost to this one.
    #[error(
        "events were lost because they were not read in time; list everything and listen again"
    )]
    Behind,
    /// The daemon is about to end.
    #[error("the daemon is stopping")]
    Stopping,
}

/// An event in a queue.
pub(super) struct Queued {
    pub(super) event: Arc<ContainerEventResponse>,
    /// Its size when it is sent.
    pub(super) bytes: usize,
}

#[derive(Default)]
struct Shared {
    /// Bytes in the queue.
    bytes: AtomicUsize,
    overflowed: AtomicBool,
}

/// The end that events are put in.
pub(super) struct Queue {
    sender: mpsc::Sender<Queued>,
    shared: Arc<Shared>,
    bytes_max: usize,
}

/// The end that they come out of.
pub(crate) struct Listener {
    receiver: mpsc::Receiver<Queued>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Listener")
    }
}

pub(super) fn pair(events_max: usize, bytes_max: usize) -> (Queue, Listener) {
    let (sender, receiver) = mpsc::channel(events_max);
    let shared = Arc::<Shared>::default();
    let queue = Queue {
        sender,
        shared: Arc::clone(&shared),
        bytes_max,
    };
    (queue, Listener { receiver, shared })
}

impl Queue {
    /// Nobody hears any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    /// Puts an event in. False when there is no room, or nobody to hear it: the queue is to be
    /// dropped then.
    pub(super) fn push(&self, queued: Queued) -> bool {
        let bytes = queued.bytes;
        let before = self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        let pushed =
            before.saturating_add(bytes) <= self.bytes_max && self.sender.try_send(queued).is_ok();
        if !pushed {
            self.shared.overflowed.store(true, Ordering::Release);
        }
        pushed
    }
}

impl Listener {
    /// The next event; an error once, after the last one, when more were lost; then nothing.
    pub(crate) async fn next(
        &mut self,
    ) -> Option<Result<Arc<ContainerEventResponse>, EventsError>> {
        if let Some(queued) = self.receiver.recv().await {
            self.shared.bytes.fetch_sub(queued.bytes, Ordering::Relaxed);
            return Some(Ok(queued.event));
        }
        let overflowed = self.shared.overflowed.swap(false, Ordering::AcqRel);
        overflowed.then_some(Err(EventsError::Behind))
    }
}

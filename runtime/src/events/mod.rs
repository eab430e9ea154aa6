//! What happens to pods and containers, told to whoever listens.
//!
//! `sandbox` and `container` publish from the tasks in which things happen, in their order for one
//! container; the CRI's GetContainerEvents listens. Publishing never waits: each listener has a queue
//! of its own, bounded in events and in bytes, and one that lets it overflow is cut off with an error,
//! for it has to list everything anew anyway.
//!
//! ```text
//!  publish ──> describe (once, if anybody listens) ──> queue of each listener ──> its stream
//!                                                        └── full: cut off, said in the log
//! ```

mod listener;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use isopod_proto::cri;
use prost::Message;

pub(crate) use self::listener::{EventsError, Listener};
use self::listener::{Queue, Queued};
use crate::clock;
use crate::sandbox::Sandbox;

/// Most listeners at a time. A kubelet is one.
const LISTENERS_MAX: usize = 16;

/// Most that a listener may be behind, in events and in bytes.
const QUEUE_EVENTS: usize = 1024;
const QUEUE_BYTES: usize = 8 << 20;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// It is there, and does not run.
    Created,
    /// It runs.
    Started,
    /// It has ended.
    Stopped,
    /// It is gone.
    Deleted,
}

impl From<EventKind> for cri::ContainerEventType {
    fn from(kind: EventKind) -> Self {
        match kind {
            EventKind::Created => Self::ContainerCreatedEvent,
            EventKind::Started => Self::ContainerStartedEvent,
            EventKind::Stopped => Self::ContainerStoppedEvent,
            EventKind::Deleted => Self::ContainerDeletedEvent,
        }
    }
}

/// A pod and its containers as they are.
pub(crate) type Describe =
    dyn Fn(&Sandbox) -> (cri::PodSandboxStatus, Vec<cri::ContainerStatus>) + Send + Sync;

/// Where things that happen are told.
#[derive(Default)]
pub(crate) struct Events {
    describe: OnceLock<Box<Describe>>,
    queues: Mutex<Queues>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Events")
    }
}

/// Of everybody who listens; none any more once the daemon stops.
#[derive(Default)]
struct Queues {
    open: Vec<Queue>,
    closed: bool,
}

impl Events {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a pod is described from now on: once, before anybody can listen.
    pub(crate) fn describe_by(&self, describe: Box<Describe>) {
        let first = self.describe.set(describe).is_ok();
        debug_assert!(first, "set once, when the daemon starts");
    }

    /// Tells that something happened to a container, or to the sandbox itself. Never waits.
    pub(crate) fn publish(&self, kind: EventKind, id: &str, sandbox: &Sandbox) {
        if self.queues().open.is_empty() {
            return;
        }
        let (status, containers) = match self.describe.get() {
            Some(describe) => describe(sandbox),
            None => return,
        };
        self.send(cri::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: cri::ContainerEventType::from(kind).into(),
            created_at: clock::now_ns(),
            pod_sandbox_status: Some(status),
            containers_statuses: containers,
        });
    }

    fn send(&self, event: cri::ContainerEventResponse) {
        let bytes = event.encoded_len();
        let event = Arc::new(event);
        self.queues().open.retain(|queue| {
            let queued = Queued {
                event: Arc::clone(&event),
                bytes,
            };
            let kept = queue.push(queued);
            if !kept && !queue.is_abandoned() {
                tracing::warn!("a listener does not keep up with the events, and is cut off");
            }
            kept
        });
    }

    /// Everything that is published from now on.
    ///
    /// # Errors
    ///
    /// [`EventsError`] when too many listen, or the daemon is stopping.
    pub(crate) fn listen(&self) -> Result<Listener, EventsError> {
        let mut queues = self.queues();
        queues.open.retain(|queue| !queue.is_abandoned());
        if queues.closed {
            return Err(EventsError::Stopping);
        }
        if queues.open.len() >= LISTENERS_MAX {
            return Err(EventsError::TooMany(LISTENERS_MAX));
        }
        let (queue, listener) = listener::pair(QUEUE_EVENTS, QUEUE_BYTES);
        queues.open.push(queue);
        Ok(listener)
    }

    /// Lets everybody who listens hear the rest, and then the end.
    pub(crate) fn close(&self) {
        let mut queues = self.queues();
        queues.closed = true;
        queues.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> cri::ContainerEventResponse {
        cri::ContainerEventResponse {
            container_id: id.to_owned(),
            ..Default::default()
        }
    }

    async fn heard(listener: &mut Listener) -> Option<Result<String, EventsError>> {
        let next = listener.next().await;
        next.map(|event| event.map(|event| event.container_id.clone()))
    }

    #[tokio::test]
    async fn everybody_hears_everything_in_order() {
        let events = Events::default();
        let mut listeners = [events.listen().unwrap(), events.listen().unwrap()];
        for id in ["a", "b", "c"] {
            events.send(event(id));
        }
        for listener in &mut listeners {
            for id in ["a", "b", "c"] {
                assert_eq!(heard(listener).await, Some(Ok(id.to_owned())));
            }
        }
    }

    #[tokio::test]
    async fn listener_that_never_listens_is_cut_off_and_the_others_are_not() {
        let events = Events::default();
        let mut deaf = events.listen().unwrap();
        let mut keen = events.listen().unwrap();
        for number in 0..=QUEUE_EVENTS {
            events.send(event(&number.to_string()));
            assert_eq!(heard(&mut keen).await, Some(Ok(number.to_string())));
        }
        assert_eq!(events.queues().open.len(), 1);
        for number in 0..QUEUE_EVENTS {
            assert_eq!(heard(&mut deaf).await, Some(Ok(number.to_string())));
        }
        assert_eq!(heard(&mut deaf).await, Some(Err(EventsError::Behind)));
        assert_eq!(heard(&mut deaf).await, None);
    }

    #[tokio::test]
    async fn large_events_fill_a_queue_by_their_bytes() {
        let events = Events::default();
        let mut deaf = events.listen().unwrap();
        let large = "x".repeat(QUEUE_BYTES / 3);
        for _ in 0..2 {
            events.send(event(&large));
        }
        // What was heard makes room.
        heard(&mut deaf).await.unwrap().unwrap();
        events.send(event(&large));
        assert_eq!(events.queues().open.len(), 1);
        events.send(event(&large));
        assert_eq!(events.queues().open.len(), 0);
    }

    #[tokio::test]
    async fn listeners_that_went_away_make_room_for_others() {
        let events = Events::default();
        let all: Vec<_> = (0..LISTENERS_MAX)
            .map(|_| events.listen().unwrap())
            .collect();
        assert_eq!(
            events.listen().err(),
            Some(EventsError::TooMany(LISTENERS_MAX))
        );
        drop(all);
        events.listen().unwrap();
    }

    #[tokio::test]
    async fn end_of_the_daemon_ends_the_streams_after_what_was_said() {
        let events = Events::default();
        let mut listener = events.listen().unwrap();
        events.send(event("last"));
        events.close();
        assert_eq!(heard(&mut listener).await, Some(Ok("last".to_owned())));
        assert_eq!(heard(&mut listener).await, None);
        assert_eq!(events.listen().err(), Some(EventsError::Stopping));
    }
}

//! The thread of one pair of queues.
//!
//! Everything is edge-triggered: the tap or a queue is looked at when it has news, and is then used
//! until it has no more to give.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::NAME;
use super::from_guest::FromGuest;
use super::limiter::Limiter;
use super::tap::Tap;
use super::to_guest::{Buffers, ToGuest};
use crate::virtio::chain::ChainError;
use crate::virtio::{ActivateError, ActiveQueue, Interrupt};

const WAKE_ID: u64 = 0;
const TAP_ID: u64 = 1;
const RX_ID: u64 = 2;
const TX_ID: u64 = 3;

const EDGE: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

/// Events taken from the kernel at once: there are no more sources.
const EVENTS_MAX: usize = 4;

/// Most packets in one direction before the other has its turn.
const PACKETS_PER_TURN: usize = 128;

/// The driver broke the rules of the device. It needs a reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a receive buffer of {0} bytes has no room for a header")]
    NoRoom(usize),
}

impl Malformed {
    pub(super) fn queue(error: virtio_queue::Error) -> Self {
        ChainError::Queue(error).into()
    }
}

/// A running worker thread.
#[derive(Debug)]
pub(super) struct PairWorker {
    stopping: Arc<AtomicBool>,
    wake: EventFd,
    thread: JoinHandle<Vec<ActiveQueue>>,
}

impl PairWorker {
    /// Starts a thread that serves the receive and the transmit queue of a pair.
    pub(super) fn start(
        thread_name: String,
        tap: Tap,
        (rx, tx): (ActiveQueue, ActiveQueue),
        (to_guest, from_guest): (Limiter, Limiter),
        (memory, features, interrupt): (GuestMemoryMmap, u64, Arc<dyn Interrupt>),
    ) -> Result<Self, ActivateError> {
        let failed = |source| ActivateError::Worker {
            device: NAME,
            source,
        };
        let wake = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let mut worker = Worker {
            epoll: epoll_of(&wake, &tap, &rx, &tx).map_err(failed)?,
            to_guest: ToGuest::new(rx, features, to_guest),
            from_guest: FromGuest::new(tx, features, from_guest),
            tap,
            stopping: Arc::clone(&stopping),
            interrupt,
        };
        let run = move || {
            worker.run(&memory);
            vec![worker.to_guest.active, worker.from_guest.active]
        };
        let thread = Builder::new()
            .name(thread_name)
            .spawn(run)
            .map_err(failed)?;
        Ok(Self {
            stopping,
            wake,
            thread,
        })
    }

    /// What wakes the thread after the tap's queue was attached.
    pub(super) fn waker(&self) -> io::Result<EventFd> {
        self.wake.try_clone()
    }

    /// Stops after the turn at hand, and returns the queues.
    pub(super) fn stop(self) -> Vec<ActiveQueue> {
        self.stopping.store(true, Ordering::Release);
        wake(&self.wake);
        // A worker that panicked has no queues to return, and its panic was printed.
        self.thread.join().unwrap_or_default()
    }
}

/// Makes a worker look at its tap, or at whether to stop.
pub(super) fn wake(waker: &EventFd) {
    // Only a counter at its limit refuses, and then the thread is due to wake anyway.
    let _ = waker.write(1);
}

fn epoll_of(wake: &EventFd, tap: &Tap, rx: &ActiveQueue, tx: &ActiveQueue) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    for (fd, id) in [
        (wake.as_raw_fd(), WAKE_ID),
        (tap.as_fd().as_raw_fd(), TAP_ID),
        (rx.notify.as_raw_fd(), RX_ID),
        (tx.notify.as_raw_fd(), TX_ID),
    ] {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EDGE, id))?;
    }
    Ok(epoll)
}

struct Worker {
    epoll: Epoll,
    to_guest: ToGuest,
    from_guest: FromGuest,
    tap: Tap,
    stopping: Arc<AtomicBool>,
    interrupt: Arc<dyn Interrupt>,
}

impl Worker {
    fn run(&mut self, memory: &GuestMemoryMmap) {
        let mut buffers = Buffers::default();
        let mut broken = false;
        while !self.stopping.load(Ordering::Acquire) {
            if !broken && let Err(error) = self.take_turns(memory, &mut buffers) {
                tracing::warn!(device = NAME, %error, "the driver broke the rules");
                self.interrupt.needs_reset();
                broken = true;
            }
            if let Err(error) = self.wait(broken, &buffers) {
                tracing::error!(device = NAME, %error, "waiting for the driver");
                self.interrupt.needs_reset();
                break;
            }
        }
        self.to_guest.put_back(&buffers);
    }

    fn take_turns<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        buffers: &mut Buffers<'m>,
    ) -> Result<(), Malformed> {
        if self.from_guest.can_send()
            && self.from_guest.send(memory, &self.tap, PACKETS_PER_TURN)?
        {
            self.interrupt.queue(self.from_guest.active.index);
        }
        let most = PACKETS_PER_TURN;
        if self.to_guest.can_deliver(buffers)
            && self.to_guest.deliver(memory, buffers, &self.tap, most)?
        {
            self.interrupt.queue(self.to_guest.active.index);
        }
        Ok(())
    }

    /// Milliseconds until a direction that went too fast may go on, for `epoll_wait`.
    fn until_unblocked(&self) -> i32 {
        let both = [self.to_guest.blocked_until, self.from_guest.blocked_until];
        both.into_iter().flatten().min().map_or(-1, |when| {
            let left = when.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
        })
    }

    /// A tap's queue that is not attached cannot be watched, and forgets who watched it.
    fn watch_tap_again(&mut self) -> io::Result<()> {
        let fd = self.tap.as_fd().as_raw_fd();
        let event = EpollEvent::new(EDGE, TAP_ID);
        self.epoll.ctl(ControlOperation::Delete, fd, event)?;
        self.epoll.ctl(ControlOperation::Add, fd, event)?;
        self.to_guest.waiting = true;
        Ok(())
    }

    /// Waits for news, unless a turn ended with more to do.
    fn wait(&mut self, broken: bool, buffers: &Buffers<'_>) -> io::Result<()> {
        let more = self.from_guest.can_send() || self.to_guest.can_deliver(buffers);
        let timeout = match (broken, more) {
            (true, _) => -1,
            (false, true) => 0,
            (false, false) => self.until_unblocked(),
        };
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        let count = match self.epoll.wait(timeout, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        let now = Instant::now();
        for blocked in [
            &mut self.to_guest.blocked_until,
            &mut self.from_guest.blocked_until,
        ] {
            blocked.take_if(|until| *until <= now);
        }
        for event in &events[..count] {
            match event.data() {
                TAP_ID => self.to_guest.waiting = true,
                RX_ID => self.to_guest.empty = false,
                TX_ID => self.from_guest.waiting = true,
                _ => self.watch_tap_again()?,
            }
        }
        Ok(())
    }
}

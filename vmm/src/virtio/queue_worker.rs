//! The thread of a device that has one queue and answers each request before it takes the next.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::{Chain, ChainError, give_back};
use super::{ActivateError, Activation, ActiveQueue, Interrupt};

/// Most requests that are answered before the driver hears of the first.
const ANSWERS_PER_INTERRUPT: u32 = 16;

/// What a device does with a request.
pub(crate) trait RequestHandler: Send + 'static {
    /// Why a request can have no answer.
    type Malformed: std::error::Error + From<ChainError>;

    /// Serves the request in `chain` and returns how many bytes were written to it.
    ///
    /// # Errors
    ///
    /// When the chain has no room for an answer: the device needs a reset.
    fn serve(&mut self, chain: Chain<'_>) -> Result<u32, Self::Malformed>;
}

/// A running worker thread.
#[derive(Debug)]
pub(crate) struct QueueWorker {
    stopping: Arc<AtomicBool>,
    stop: EventFd,
    thread: JoinHandle<ActiveQueue>,
}

impl QueueWorker {
    /// Starts a thread that serves the only queue of `activation`.
    ///
    /// # Errors
    ///
    /// When the queue is missing or the thread cannot be started.
    pub(crate) fn start(
        device: &'static str,
        thread_name: String,
        activation: Activation,
        handler: impl RequestHandler,
    ) -> Result<Self, ActivateError> {
        let failed = |source| ActivateError::Worker { device, source };
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let active = queues
            .into_iter()
            .next()
            .ok_or(ActivateError::QueueMissing(0))?;
        let stop = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let epoll = epoll_of(&active.notify, &stop).map_err(failed)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let mut worker = Worker {
            device,
            active,
            epoll,
            stopping: Arc::clone(&stopping),
            interrupt,
            handler,
        };
        let run = move || {
            worker.run(&memory);
            worker.active
        };
        let thread = Builder::new()
            .name(thread_name)
            .spawn(run)
            .map_err(failed)?;
        Ok(Self {
            stopping,
            stop,
            thread,
        })
    }

    /// Stops after the request at hand and returns the queue.
    pub(crate) fn stop(self) -> Vec<ActiveQueue> {
        self.stopping.store(true, Ordering::Release);
        self.stop
            .write(1)
            .expect("an eventfd that was never written to has room for 1");
        // A worker that panicked has no queue to return, and its panic was printed.
        self.thread.join().into_iter().collect()
    }
}

/// The notification is edge-triggered, so that it needs no read to be armed again.
fn epoll_of(notify: &EventFd, stop: &EventFd) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
    for (event, set) in [(notify, edge), (stop, EventSet::IN)] {
        epoll.ctl(
            ControlOperation::Add,
            event.as_raw_fd(),
            EpollEvent::new(set, 0),
        )?;
    }
    Ok(epoll)
}

struct Worker<H> {
    device: &'static str,
    active: ActiveQueue,
    epoll: Epoll,
    stopping: Arc<AtomicBool>,
    interrupt: Arc<dyn Interrupt>,
    handler: H,
}

impl<H: RequestHandler> Worker<H> {
    fn run(&mut self, memory: &GuestMemoryMmap) {
        let mut broken = false;
        while !self.stopping() {
            if !broken && let Err(error) = self.serve_all(memory) {
                tracing::warn!(device = self.device, %error, "the driver broke the rules");
                self.interrupt.needs_reset();
                broken = true;
            }
            let mut events = [EpollEvent::default(); 2];
            match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(device = self.device, %error, "waiting for the driver");
                    self.interrupt.needs_reset();
                    return;
                }
                _ => {}
            }
        }
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Serves until the queue is empty or the worker is to stop.
    fn serve_all(&mut self, memory: &GuestMemoryMmap) -> Result<(), H::Malformed> {
        loop {
            let queue = &mut self.active.queue;
            queue.disable_notification(memory).map_err(broken_queue)?;
            self.serve_available(memory)?;
            let more = self
                .active
                .queue
                .enable_notification(memory)
                .map_err(broken_queue)?;
            if self.stopping() || !more {
                return Ok(());
            }
        }
    }

    fn serve_available(&mut self, memory: &GuestMemoryMmap) -> Result<(), H::Malformed> {
        let mut answers = 0;
        while !self.stopping()
            && let Some(chain) = Chain::pop(&mut self.active.queue, memory)?
        {
            let head = chain.head;
            let written = self.handler.serve(chain)?;
            give_back(&mut self.active.queue, memory, head, written)?;
            answers += 1;
            if answers == ANSWERS_PER_INTERRUPT {
                answers = 0;
                self.notify_driver(memory)?;
            }
        }
        if answers > 0 {
            self.notify_driver(memory)?;
        }
        Ok(())
    }

    fn notify_driver(&mut self, memory: &GuestMemoryMmap) -> Result<(), H::Malformed> {
        let queue = &mut self.active.queue;
        if queue.needs_notification(memory).map_err(broken_queue)? {
            self.interrupt.queue(self.active.index);
        }
        Ok(())
    }
}

fn broken_queue<M: From<ChainError>>(error: virtio_queue::Error) -> M {
    ChainError::Queue(error).into()
}

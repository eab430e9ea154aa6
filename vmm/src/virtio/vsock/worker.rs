//! The thread that moves packets between the queues and the muxer.
//!
//! Everything is edge-triggered: a socket or a notification is looked at when it has news, and is
//! then used until it has no more to give. Nothing is read to re-arm it and nothing is polled.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::connection::Connection;
use super::muxer::{LISTENER_ID, Muxer, Next, REQUESTS_ID, add};
use super::packet::{HEADER_LEN, Packet, Received};
use super::{GUEST_CID, NAME};
use crate::virtio::chain::{Chain, ChainError, give_back};
use crate::virtio::segments::Segments;
use crate::virtio::{ActivateError, Activation, ActiveQueue, Interrupt};

/// Queues (section 5.10.2).
const RX: usize = 0;
const TX: usize = 1;

/// Events that the muxer has no part in.
const STOP_ID: u64 = 2;
const RX_ID: u64 = 3;
const TX_ID: u64 = 4;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

/// Most packets in one direction before the other has its turn.
const PACKETS_PER_TURN: usize = 128;

/// Most bytes in one packet to the guest, Linux's own limit.
const PAYLOAD_MAX: usize = 64 * 1024;

/// A running worker thread.
#[derive(Debug)]
pub(super) struct VsockWorker {
    stopping: Arc<AtomicBool>,
    stop: EventFd,
    thread: JoinHandle<Vec<ActiveQueue>>,
}

impl VsockWorker {
    /// Starts a thread that serves the queues and the host's sockets.
    pub(super) fn start(
        activation: Activation,
        muxer: Arc<Mutex<Muxer>>,
    ) -> Result<Self, ActivateError> {
        let failed = |source| ActivateError::Worker {
            device: NAME,
            source,
        };
        let mut queues = activation.queues;
        let mut take = |index| {
            let at = queues.iter().position(|active| active.index == index);
            at.map(|at| queues.swap_remove(at))
                .ok_or(ActivateError::QueueMissing(index))
        };
        let (rx, tx) = (take(RX)?, take(TX)?);
        let stop = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let mut worker = Worker {
            rx,
            tx,
            others: queues,
            stop: stop.try_clone().map_err(failed)?,
            stopping: Arc::clone(&stopping),
            interrupt: activation.interrupt,
            rx_empty: false,
            tx_waiting: true,
            broken: false,
        };
        let memory = activation.memory;
        let run = move || {
            // A poisoned muxer is as good as its invariants, which hold between packets.
            let mut muxer = muxer.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = worker.run(&mut muxer, &memory) {
                tracing::error!(%error, "waiting for vsock events");
                worker.interrupt.needs_reset();
            }
            worker.into_queues()
        };
        let thread = Builder::new()
            .name(NAME.to_owned())
            .spawn(run)
            .map_err(failed)?;
        Ok(Self {
            stopping,
            stop,
            thread,
        })
    }

    /// Stops after the packets that the guest has sent, and returns the queues.
    pub(super) fn stop(self) -> Vec<ActiveQueue> {
        self.stopping.store(true, Ordering::Release);
        self.stop
            .write(1)
            .expect("an eventfd that was never written to has room for 1");
        // A worker that panicked has no queues to return, and its panic was printed.
        self.thread.join().unwrap_or_default()
    }
}

/// The driver broke the rules of the device. It needs a reset.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a packet of {0} bytes has no header")]
    NoHeader(usize),
    #[error("a packet says that it has {len} bytes and has {room}")]
    Length { len: u32, room: usize },
    #[error("a buffer of {0} bytes has no room for a packet")]
    NoRoom(usize),
}

struct Worker {
    rx: ActiveQueue,
    tx: ActiveQueue,
    /// The event queue: its buffers are kept for the transport reset after a restored snapshot
    /// (section 5.10.6.7).
    others: Vec<ActiveQueue>,
    stop: EventFd,
    stopping: Arc<AtomicBool>,
    interrupt: Arc<dyn Interrupt>,
    /// The guest has no buffer for a packet; it will notify.
    rx_empty: bool,
    /// The guest may have packets.
    tx_waiting: bool,
    /// The guest broke the rules: nothing of it is looked at until it resets the device.
    broken: bool,
}

impl Worker {
    fn run(&mut self, muxer: &mut Muxer, memory: &GuestMemoryMmap) -> io::Result<()> {
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let events = [
            (self.stop.as_raw_fd(), EventSet::IN, STOP_ID),
            (self.rx.notify.as_raw_fd(), edge, RX_ID),
            (self.tx.notify.as_raw_fd(), edge, TX_ID),
        ];
        for (fd, set, id) in events {
            add(muxer.epoll(), fd, set, id)?;
        }
        let result = self.serve(muxer, memory);
        for (fd, _, _) in events {
            let event = EpollEvent::default();
            muxer.epoll().ctl(ControlOperation::Delete, fd, event)?;
        }
        result
    }

    fn serve(&mut self, muxer: &mut Muxer, memory: &GuestMemoryMmap) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        loop {
            // Looked at before the last turn: what the guest sent before the stop still counts.
            let stopping = self.stopping.load(Ordering::Acquire);
            if !self.broken
                && let Err(error) = self.take_turns(muxer, memory)
            {
                tracing::warn!(%error, "the vsock driver broke the rules");
                self.broken = true;
                self.interrupt.needs_reset();
            }
            if stopping {
                return Ok(());
            }
            let timeout = self.timeout(muxer);
            let count = match muxer.epoll().wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            for event in &events[..count] {
                self.on_event(muxer, event.data(), event.event_set());
            }
            muxer.on_time(Instant::now());
        }
    }

    fn on_event(&mut self, muxer: &mut Muxer, id: u64, events: EventSet) {
        match id {
            STOP_ID => {}
            RX_ID => self.rx_empty = false,
            TX_ID => self.tx_waiting = true,
            LISTENER_ID => muxer.on_listener(),
            REQUESTS_ID => muxer.on_requests(),
            id => muxer.on_socket(id, events),
        }
    }

    /// Milliseconds until there is something to do, for `epoll_wait`.
    fn timeout(&self, muxer: &Muxer) -> i32 {
        let receives = self.tx_waiting && muxer.can_receive();
        let sends = !self.rx_empty && muxer.has_next();
        if !self.broken && (receives || sends) {
            return 0;
        }
        muxer.next_deadline().map_or(-1, |when| {
            let left = when.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
        })
    }

    fn take_turns(&mut self, muxer: &mut Muxer, memory: &GuestMemoryMmap) -> Result<(), Malformed> {
        if self.tx_waiting {
            self.receive(muxer, memory)?;
        }
        self.send(muxer, memory)
    }

    /// Takes packets of the guest.
    fn receive(&mut self, muxer: &mut Muxer, memory: &GuestMemoryMmap) -> Result<(), Malformed> {
        let mut taken = 0;
        let queue = &mut self.tx.queue;
        queue.disable_notification(memory).map_err(broken_queue)?;
        while taken < PACKETS_PER_TURN && muxer.can_receive() {
            let Some(chain) = Chain::pop(queue, memory)? else {
                if queue.enable_notification(memory).map_err(broken_queue)? {
                    continue;
                }
                self.tx_waiting = false;
                break;
            };
            let head = chain.head;
            let mut payload = chain.readable;
            let readable = payload.len();
            let packet = Received::take(&mut payload).ok_or(Malformed::NoHeader(readable))?;
            let len = usize::try_from(packet.len).unwrap_or(usize::MAX);
            if len > payload.len() {
                return Err(Malformed::Length {
                    len: packet.len,
                    room: payload.len(),
                });
            }
            payload.truncate(len);
            muxer.receive(&packet, payload);
            give_back(queue, memory, head, 0)?;
            taken += 1;
        }
        if taken > 0 {
            notify(&mut self.tx, memory, self.interrupt.as_ref())?;
        }
        Ok(())
    }

    /// Sends packets to the guest while it has buffers for them.
    fn send(&mut self, muxer: &mut Muxer, memory: &GuestMemoryMmap) -> Result<(), Malformed> {
        let mut sent = 0;
        while sent < PACKETS_PER_TURN && !self.rx_empty && muxer.has_next() {
            let queue = &mut self.rx.queue;
            let Some(mut buffer) = pop_buffer(queue, memory)? else {
                // Nothing more comes to mind until the guest has put buffers there.
                self.rx_empty = !queue.enable_notification(memory).map_err(broken_queue)?;
                continue;
            };
            match muxer.next() {
                None => put_back(queue, 1),
                Some(Next::Packet(packet)) => {
                    give_packet(queue, memory, &mut buffer, packet)?;
                    sent += 1;
                }
                Some(Next::Data(id)) => {
                    sent += match muxer.connection(id) {
                        Some(connection) => self.send_data(connection, buffer, memory)?,
                        None => 0,
                    };
                    muxer.settle(id);
                }
            }
        }
        if sent > 0 {
            notify(&mut self.rx, memory, self.interrupt.as_ref())?;
        }
        Ok(())
    }

    /// Fills `first` and as many more buffers as the connection deserves with one read. Returns
    /// how many packets that made.
    fn send_data(
        &mut self,
        connection: &mut Connection,
        first: Chain<'_>,
        memory: &GuestMemoryMmap,
    ) -> Result<usize, Malformed> {
        let queue = &mut self.rx.queue;
        let (room, burst) = (connection.room(), connection.burst());
        let mut run = Segments::default();
        let mut buffers = Vec::with_capacity(burst);
        let mut next = Some(first);
        while let Some(buffer) = next.take() {
            let payload_len = run.append_range(&buffer.writable, HEADER_LEN, PAYLOAD_MAX);
            buffers.push((buffer, payload_len));
            if buffers.len() < burst && run.len() < room {
                next = pop_buffer(queue, memory)?;
            }
        }
        let mut left = connection.read(&mut run);
        let mut filled = 0;
        for (buffer, payload_len) in &mut buffers {
            if left == 0 {
                break;
            }
            let len = left.min(*payload_len);
            left -= len;
            filled += 1;
            let len = u32::try_from(len).expect("no more than PAYLOAD_MAX");
            give_packet(queue, memory, buffer, connection.data_packet(len))?;
        }
        put_back(queue, buffers.len() - filled);
        Ok(filled)
    }

    fn into_queues(self) -> Vec<ActiveQueue> {
        let mut queues = self.others;
        queues.extend([self.rx, self.tx]);
        queues.sort_by_key(|active| active.index);
        queues
    }
}

/// Takes the guest's next buffer off the queue.
fn pop_buffer<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
) -> Result<Option<Chain<'m>>, Malformed> {
    let buffer = Chain::pop(queue, memory)?;
    match &buffer {
        Some(buffer) if buffer.writable.len() <= HEADER_LEN => {
            Err(Malformed::NoRoom(buffer.writable.len()))
        }
        _ => Ok(buffer),
    }
}

/// Undoes the last `count` times that a chain was taken off the queue.
fn put_back(queue: &mut Queue, count: usize) {
    let count = u16::try_from(count).expect("no more than BURST_MAX");
    queue.set_next_avail(queue.next_avail().wrapping_sub(count));
}

/// Gives the guest a packet whose payload is in the buffer already.
fn give_packet(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    buffer: &mut Chain<'_>,
    packet: Packet,
) -> Result<(), Malformed> {
    let written = buffer.writable.write_front(&packet.encode(GUEST_CID));
    debug_assert!(written, "pop_buffer looked for room");
    let header_len = u32::try_from(HEADER_LEN).expect("44 fits in 32 bits");
    give_back(queue, memory, buffer.head, header_len + packet.len)?;
    Ok(())
}

fn notify(
    active: &mut ActiveQueue,
    memory: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
) -> Result<(), Malformed> {
    let wanted = active.queue.needs_notification(memory);
    if wanted.map_err(broken_queue)? {
        interrupt.queue(active.index);
    }
    Ok(())
}

fn broken_queue(error: virtio_queue::Error) -> Malformed {
    ChainError::Queue(error).into()
}

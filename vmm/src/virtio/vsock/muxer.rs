//! Every connection, and the sockets of the host.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Opener, Outgoing, Phase, Verdict};
use super::handle::ConnectRequests;
use super::handshake::{self, Handshake};
use super::packet::{HOST_CID, Op, Packet, Ports, Received, TYPE_STREAM};
use super::{CONNECTIONS_MAX, GUEST_CID};
use crate::virtio::segments::Segments;

/// How long a host program may take for its first line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the guest may take to accept or refuse a connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the guest may take to confirm that a connection is closed; Linux waits as long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

/// How long to wait before connections are accepted again after there were no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the host's programs may take for the last bytes of a guest that is gone.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// Most resets that are owed to the guest; with so many, no packet of it is looked at.
const RESETS_MAX: usize = 128;

/// The first of the ports that connections from the host have on the host's side.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Events with an id below this belong to the worker.
const FIRST_ID: u64 = 16;
pub(super) const LISTENER_ID: u64 = 0;
pub(super) const REQUESTS_ID: u64 = 1;

/// What there is for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A packet without payload.
    Packet(Packet),
    /// Bytes of the connection with this id, perhaps.
    Data(u64),
}

#[derive(Debug)]
enum Slot {
    /// A host program that has not said what it wants.
    Handshake(UnixStream),
    Connection(Box<Connection>),
}

/// The table of connections. Used by the worker thread, and by the device while that is stopped.
#[derive(Debug)]
pub(super) struct Muxer {
    epoll: Epoll,
    listener: UnixListener,
    dir: PathBuf,
    requests: ConnectRequests,
    slots: HashMap<u64, Slot>,
    ids: HashMap<Ports, u64>,
    next_id: u64,
    next_host_port: u32,
    /// Connections that have something for the guest, in turn.
    ready: VecDeque<u64>,
    /// Resets for packets that belong to no connection.
    resets: VecDeque<Packet>,
    /// When to look at which slot again.
    deadlines: BTreeSet<(Instant, u64)>,
}

impl Muxer {
    /// No connections.
    pub(super) fn new(
        listener: UnixListener,
        dir: &Path,
        requests: ConnectRequests,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        add(&epoll, listener.as_raw_fd(), edge, LISTENER_ID)?;
        add(&epoll, requests.wake.as_raw_fd(), edge, REQUESTS_ID)?;
        Ok(Self {
            epoll,
            listener,
            dir: dir.to_owned(),
            requests,
            slots: HashMap::new(),
            ids: HashMap::new(),
            next_id: FIRST_ID,
            next_host_port: FIRST_HOST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            deadlines: BTreeSet::new(),
        })
    }

    /// Where all sockets of the host are watched.
    pub(super) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// When [`Self::on_time`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(when, _)| *when)
    }

    /// Ends what has taken too long.
    pub(super) fn on_time(&mut self, now: Instant) {
        while let Some((when, id)) = self.deadlines.first().copied()
            && when <= now
        {
            self.deadlines.remove(&(when, id));
            if id == LISTENER_ID {
                self.on_listener();
                continue;
            }
            match self.slots.get(&id) {
                Some(Slot::Connection(connection)) => {
                    let ports = connection.ports();
                    self.drop_guest_side(id);
                    self.reset(ports, TYPE_STREAM);
                }
                Some(Slot::Handshake(_)) => self.remove(id),
                None => {}
            }
        }
    }

    /// Accepts every program that waits.
    pub(super) fn on_listener(&mut self) {
        loop {
            match self.listener.accept() {
                // Closed at once: the program sees the end of the stream.
                Ok(_) if self.slots.len() >= CONNECTIONS_MAX => {}
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok()
                        && let Some(id) = self.watch(&stream)
                    {
                        self.insert(id, Slot::Handshake(stream));
                        self.set_deadline(id, HANDSHAKE_TIMEOUT);
                        self.on_handshake(id);
                    }
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        tracing::warn!(%error, "accepting vsock connections");
                        self.set_deadline(LISTENER_ID, ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    /// Takes what handles have asked for.
    pub(super) fn on_requests(&mut self) {
        while let Ok(request) = self.requests.requests.try_recv() {
            let id = if self.slots.len() < CONNECTIONS_MAX {
                self.watch(&request.stream)
            } else {
                None
            };
            match id {
                Some(id) => {
                    let opener = Opener::Handle(request.answer);
                    self.request(id, request.port, request.stream, opener);
                }
                None => {
                    // Fails when the handle has given up.
                    let _given_up = request.answer.try_send(false);
                }
            }
        }
    }

    /// Something has happened on a slot's socket.
    pub(super) fn on_socket(&mut self, id: u64, events: EventSet) {
        match self.slots.get_mut(&id) {
            Some(Slot::Handshake(_)) => self.on_handshake(id),
            Some(Slot::Connection(connection)) => {
                if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
                    connection.on_hang_up();
                }
                if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
                    connection.on_readable();
                }
                if events.contains(EventSet::OUT) {
                    connection.on_writable();
                }
                self.settle(id);
            }
            // An event of a connection that ended in the same round.
            None => {}
        }
    }

    fn on_handshake(&mut self, id: u64) {
        let Some(Slot::Handshake(stream)) = self.slots.get(&id) else {
            return;
        };
        match handshake::advance(stream) {
            Handshake::Waiting => {}
            Handshake::Broken => self.remove(id),
            Handshake::Connect(port) => {
                self.clear_deadline(id);
                if let Some(Slot::Handshake(stream)) = self.slots.remove(&id) {
                    self.request(id, port, stream, Opener::Program);
                }
            }
        }
    }

    fn request(&mut self, id: u64, guest_port: u32, stream: UnixStream, opener: Opener) {
        let ports = self.free_ports(guest_port);
        let connection = Connection::requested(ports, stream, opener);
        self.insert_connection(id, connection);
        self.set_deadline(id, REQUEST_TIMEOUT);
    }

    /// A port of the host that has no connection with `guest` yet. There are more ports than
    /// connections.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_host_port;
            self.next_host_port = host.wrapping_add(1).max(FIRST_HOST_PORT);
            let ports = Ports { host, guest };
            if !self.ids.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// False while too much is owed to the guest to look at its packets.
    pub(super) fn can_receive(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// A packet of the guest; `payload` has as many bytes as its header says.
    pub(super) fn receive(&mut self, packet: &Received, payload: Segments<'_>) {
        if packet.src_cid != GUEST_CID || packet.dst_cid != HOST_CID {
            tracing::debug!(packet.src_cid, packet.dst_cid, "a vsock packet for nobody");
            return;
        }
        let ports = packet.ports;
        let known = self.ids.get(&ports).copied();
        if packet.socket_type != TYPE_STREAM {
            if packet.op != Some(Op::Rst) {
                self.reset(ports, packet.socket_type);
            }
            return;
        }
        match (known, packet.op) {
            (Some(id), _) => self.receive_for(id, packet, payload),
            (None, Some(Op::Rst)) => {}
            (None, Some(Op::Request)) => self.open_from_guest(packet),
            (None, _) => self.reset(ports, TYPE_STREAM),
        }
    }

    fn receive_for(&mut self, id: u64, packet: &Received, payload: Segments<'_>) {
        let Some(Slot::Connection(connection)) = self.slots.get_mut(&id) else {
            return;
        };
        let was_requested = connection.phase() == Phase::Requested;
        match connection.receive(packet, payload) {
            Verdict::Keep => {
                if was_requested && connection.phase() != Phase::Requested {
                    self.clear_deadline(id);
                }
                self.settle(id);
            }
            Verdict::GuestGone => self.drop_guest_side(id),
            Verdict::Reset => {
                self.drop_guest_side(id);
                self.reset(packet.ports, TYPE_STREAM);
            }
        }
    }

    fn open_from_guest(&mut self, packet: &Received) {
        let ports = packet.ports;
        let opened = if self.slots.len() < CONNECTIONS_MAX {
            self.connect_to_program(ports.host)
        } else {
            Err(ErrorKind::ConnectionRefused.into())
        };
        let watched = opened.and_then(|stream| {
            let id = self.watch(&stream).ok_or(ErrorKind::OutOfMemory)?;
            Ok((id, stream))
        });
        match watched {
            Ok((id, stream)) => {
                let connection = Connection::accepted(ports, stream, packet.credit);
                self.insert_connection(id, connection);
            }
            Err(error) => {
                tracing::debug!(port = ports.host, %error, "no host program for the guest");
                self.reset(ports, TYPE_STREAM);
            }
        }
    }

    /// Connects to who listens for the guest on `port`. Never blocks: a listener whose backlog is
    /// full refuses.
    fn connect_to_program(&self, port: u32) -> io::Result<UnixStream> {
        let address = UnixAddr::new(&self.dir.join(format!("vsock.sock_{port}")))?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &address)?;
        Ok(UnixStream::from(socket))
    }

    /// True when [`Self::next`] may have something.
    pub(super) fn has_next(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// What the guest should get next.
    pub(super) fn next(&mut self) -> Option<Next> {
        if let Some(packet) = self.resets.pop_front() {
            return Some(Next::Packet(packet));
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(Slot::Connection(connection)) = self.slots.get_mut(&id) else {
                continue;
            };
            connection.listed = false;
            let Some(outgoing) = connection.outgoing() else {
                continue;
            };
            if connection.phase() == Phase::Closing {
                self.set_deadline(id, CLOSE_TIMEOUT);
            }
            match outgoing {
                Outgoing::Packet(packet) => {
                    self.settle(id);
                    return Some(Next::Packet(packet));
                }
                // The worker reads, then settles.
                Outgoing::Data => return Some(Next::Data(id)),
            }
        }
        None
    }

    /// The connection that [`Next::Data`] names.
    pub(super) fn connection(&mut self, id: u64) -> Option<&mut Connection> {
        match self.slots.get_mut(&id) {
            Some(Slot::Connection(connection)) => Some(connection),
            _ => None,
        }
    }

    /// Lists a connection that has more for the guest, and forgets one that is finished.
    pub(super) fn settle(&mut self, id: u64) {
        let Some(Slot::Connection(connection)) = self.slots.get_mut(&id) else {
            return;
        };
        if connection.is_finished() {
            self.remove(id);
        } else if connection.has_outgoing() && !connection.listed {
            connection.listed = true;
            self.ready.push_back(id);
        }
    }

    /// Ends every connection: the guest has forgotten them. What was kept for the host's programs
    /// is written first, which blocks for [`HANG_UP_TIMEOUT`] at most.
    pub(super) fn hang_up(&mut self) {
        let deadline = Instant::now() + HANG_UP_TIMEOUT;
        for slot in self.slots.values() {
            let Slot::Connection(connection) = slot else {
                continue;
            };
            if let Some((to_host, stream)) = connection.undelivered() {
                let left = deadline.saturating_duration_since(Instant::now());
                // A timeout of zero would mean none.
                let timeout = left.max(Duration::from_millis(1));
                if let Err(error) = to_host.drain(stream, timeout) {
                    let port = connection.ports().guest;
                    tracing::warn!(port, %error, "a host program lost a vsock connection's end");
                }
            }
        }
        let connections: Vec<u64> = self.ids.drain().map(|(_, id)| id).collect();
        for id in connections {
            self.remove(id);
        }
        self.slots
            .retain(|_, slot| matches!(slot, Slot::Handshake(_)));
        self.ready.clear();
        self.resets.clear();
        self.count();
    }

    fn reset(&mut self, ports: Ports, socket_type: u16) {
        self.resets.push_back(Packet::reset(ports, socket_type));
    }

    /// The guest does not know the connection any more; its ports are free.
    fn drop_guest_side(&mut self, id: u64) {
        self.clear_deadline(id);
        let Some(Slot::Connection(connection)) = self.slots.get_mut(&id) else {
            return;
        };
        self.ids.remove(&connection.ports());
        if connection.drain() {
            self.settle(id);
        } else {
            self.remove(id);
        }
    }

    fn insert_connection(&mut self, id: u64, connection: Connection) {
        self.ids.insert(connection.ports(), id);
        self.insert(id, Slot::Connection(Box::new(connection)));
        self.settle(id);
    }

    fn insert(&mut self, id: u64, slot: Slot) {
        self.slots.insert(id, slot);
        self.count();
    }

    /// Closes the slot's socket, which takes it off the epoll set as well.
    fn remove(&mut self, id: u64) {
        self.clear_deadline(id);
        if let Some(Slot::Connection(connection)) = self.slots.remove(&id)
            && self.ids.get(&connection.ports()) == Some(&id)
        {
            self.ids.remove(&connection.ports());
        }
        self.count();
    }

    /// Tells handles how many connections there are.
    fn count(&self) {
        let count = u32::try_from(self.slots.len()).expect("no more than CONNECTIONS_MAX");
        self.requests.open.store(count, Ordering::Relaxed);
    }

    /// Watches a new socket, under a new id.
    fn watch(&mut self, stream: &UnixStream) -> Option<u64> {
        let id = self.next_id;
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if let Err(error) = add(&self.epoll, stream.as_raw_fd(), events, id) {
            tracing::warn!(%error, "watching a vsock connection");
            return None;
        }
        self.next_id += 1;
        Some(id)
    }

    fn set_deadline(&mut self, id: u64, after: Duration) {
        self.clear_deadline(id);
        self.deadlines.insert((Instant::now() + after, id));
    }

    fn clear_deadline(&mut self, id: u64) {
        self.deadlines.retain(|(_, other)| *other != id);
    }
}

/// Adds a descriptor to an epoll set.
pub(super) fn add(epoll: &Epoll, fd: RawFd, events: EventSet, id: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, id))
}

//! One connection between a host program and a guest program.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;

use super::packet::{
    Credit, Op, Packet, Ports, Received, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
    TYPE_STREAM,
};
use super::to_guest::ToGuest;
use super::to_host::ToHost;
use crate::virtio::segments::Segments;

/// Where a connection is in its life; see the folder's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest was asked.
    Requested,
    /// Bytes flow.
    Open,
    /// The host is gone and the guest was told; its RST ends it.
    Closing,
    /// The guest is gone; the host still has to take what is kept for it.
    Draining,
}

/// Who waits to hear that the guest has accepted.
#[derive(Debug)]
pub(super) enum Opener {
    /// Nobody: the guest opened the connection.
    Guest,
    /// A host program, by a line on its stream.
    Program,
    /// A handle in this process.
    Handle(SyncSender<bool>),
}

/// What becomes of a connection after a packet of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// The guest has let go of it.
    GuestGone,
    /// The guest has let go of it and waits for an RST, or broke the rules.
    Reset,
}

/// What a connection has for the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A packet without payload.
    Packet(Packet),
    /// The host's socket has bytes, perhaps.
    Data,
}

/// Packets that are due. Each kind is due once however often it became so: what a guest can make
/// the device owe is bounded.
#[derive(Debug, Default)]
struct Due {
    request: bool,
    response: bool,
    credit: bool,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    phase: Phase,
    /// `None` when the host's end is closed.
    stream: Option<UnixStream>,
    opener: Opener,
    to_host: ToHost,
    to_guest: ToGuest,
    due: Due,
    /// SHUTDOWN flags that the guest was sent.
    told: u32,
    /// SHUTDOWN flags that the guest has sent.
    heard: u32,
    /// It is in the muxer's list of connections that have something for the guest.
    pub(super) listed: bool,
}

impl Connection {
    /// A connection that the guest is to be asked for.
    pub(super) fn requested(ports: Ports, stream: UnixStream, opener: Opener) -> Self {
        let due = Due {
            request: true,
            ..Due::default()
        };
        let credit = Credit::default();
        Self::new(ports, Phase::Requested, stream, opener, due, credit)
    }

    /// A connection that the guest has asked for and a host program has accepted.
    pub(super) fn accepted(ports: Ports, stream: UnixStream, credit: Credit) -> Self {
        let due = Due {
            response: true,
            ..Due::default()
        };
        Self::new(ports, Phase::Open, stream, Opener::Guest, due, credit)
    }

    fn new(
        ports: Ports,
        phase: Phase,
        stream: UnixStream,
        opener: Opener,
        due: Due,
        credit: Credit,
    ) -> Self {
        Self {
            ports,
            phase,
            stream: Some(stream),
            opener,
            to_host: ToHost::new(),
            to_guest: ToGuest::new(credit),
            due,
            told: 0,
            heard: 0,
            listed: false,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// What is kept for the host, and the way to it.
    pub(super) fn undelivered(&self) -> Option<(&ToHost, &UnixStream)> {
        let stream = self.stream.as_ref()?;
        (!self.to_host.is_drained()).then_some((&self.to_host, stream))
    }

    /// A packet of the guest.
    pub(super) fn receive(&mut self, packet: &Received, payload: Segments<'_>) -> Verdict {
        self.to_guest.update(packet.credit);
        match (self.phase, packet.op) {
            (_, Some(Op::Rst)) => Verdict::GuestGone,
            (Phase::Requested, Some(Op::Response)) => {
                self.phase = Phase::Open;
                self.tell_opener(true);
                Verdict::Keep
            }
            (Phase::Open, Some(Op::Rw)) if !self.to_host.is_ended() => {
                let Some(stream) = &self.stream else {
                    return Verdict::Reset;
                };
                match self.to_host.push(stream, payload) {
                    Ok(()) => Verdict::Keep,
                    Err(_overrun) => Verdict::Reset,
                }
            }
            // Sent before the guest knew that the host is gone.
            (Phase::Closing, Some(Op::Rw | Op::CreditRequest)) => Verdict::Keep,
            (Phase::Open | Phase::Closing, Some(Op::CreditUpdate)) => Verdict::Keep,
            (Phase::Open, Some(Op::CreditRequest)) => {
                self.due.credit = true;
                Verdict::Keep
            }
            (Phase::Open | Phase::Closing, Some(Op::Shutdown)) => self.hear(packet.flags),
            _ => Verdict::Reset,
        }
    }

    fn hear(&mut self, flags: u32) -> Verdict {
        self.heard |= flags & SHUTDOWN_BOTH;
        if self.heard == SHUTDOWN_BOTH {
            return Verdict::Reset;
        }
        if let Some(stream) = &self.stream {
            if self.heard & SHUTDOWN_SEND != 0 {
                self.to_host.end(stream);
            }
            if self.heard & SHUTDOWN_RECEIVE != 0 && !self.to_guest.is_over() {
                self.to_guest.end();
                // The host's writes fail from now on. Fails when the host is gone.
                let _gone = stream.shutdown(Shutdown::Read);
            }
        }
        Verdict::Keep
    }

    /// The guest is gone. True when the host still has to be given something.
    pub(super) fn drain(&mut self) -> bool {
        self.tell_opener(false);
        if let Some(stream) = &self.stream
            && !self.to_host.is_drained()
        {
            self.phase = Phase::Draining;
            self.to_guest.end();
            let _gone = stream.shutdown(Shutdown::Read);
            return true;
        }
        false
    }

    /// The socket takes bytes again.
    pub(super) fn on_writable(&mut self) {
        if let Some(stream) = &self.stream {
            self.to_host.on_writable(stream);
        }
    }

    /// The socket has bytes, or their end.
    pub(super) fn on_readable(&mut self) {
        self.to_guest.on_readable();
    }

    /// The host has closed its end.
    pub(super) fn on_hang_up(&mut self) {
        self.to_guest.on_hang_up();
        self.to_host.refuse();
    }

    /// True when nothing remains to be done for the connection, the guest included.
    pub(super) fn is_finished(&self) -> bool {
        self.phase == Phase::Draining && self.to_host.is_drained()
    }

    /// True when [`Self::outgoing`] has something.
    pub(super) fn has_outgoing(&self) -> bool {
        match self.phase {
            Phase::Requested => self.due.request,
            Phase::Open => {
                self.due.response
                    || self.due.credit
                    || self.to_host.has_news()
                    || self.to_guest.can_read()
                    || self.to_guest.should_ask()
                    || self.untold() != 0
            }
            Phase::Closing | Phase::Draining => false,
        }
    }

    /// The next thing that the guest should get.
    pub(super) fn outgoing(&mut self) -> Option<Outgoing> {
        match self.phase {
            Phase::Requested => {
                std::mem::take(&mut self.due.request).then(|| self.packet(Op::Request, 0))
            }
            Phase::Open => self.outgoing_when_open(),
            Phase::Closing | Phase::Draining => None,
        }
    }

    fn outgoing_when_open(&mut self) -> Option<Outgoing> {
        if std::mem::take(&mut self.due.response) {
            return Some(self.packet(Op::Response, 0));
        }
        if self.due.credit || self.to_host.has_news() {
            return Some(self.packet(Op::CreditUpdate, 0));
        }
        if self.to_guest.can_read() {
            return Some(Outgoing::Data);
        }
        if self.to_guest.should_ask() {
            self.to_guest.ask();
            return Some(self.packet(Op::CreditRequest, 0));
        }
        let untold = self.untold();
        if untold == 0 {
            return None;
        }
        self.told |= untold;
        if self.told == SHUTDOWN_BOTH {
            self.phase = Phase::Closing;
            self.stream = None;
        }
        Some(self.packet(Op::Shutdown, self.told))
    }

    /// SHUTDOWN flags that the guest should know of. "I send no more" comes after the last byte.
    fn untold(&self) -> u32 {
        let mut flags = 0;
        if self.to_guest.is_over() && self.heard & SHUTDOWN_RECEIVE == 0 {
            flags |= SHUTDOWN_SEND;
            if self.to_guest.is_hung_up() {
                flags |= SHUTDOWN_RECEIVE;
            }
        }
        if self.to_host.is_refused() {
            flags |= SHUTDOWN_RECEIVE;
            if self.heard & SHUTDOWN_RECEIVE != 0 {
                flags |= SHUTDOWN_SEND;
            }
        }
        flags & !self.told
    }

    /// How many buffers to gather for [`Self::read`].
    pub(super) fn burst(&self) -> usize {
        self.to_guest.burst()
    }

    /// How many bytes the guest has room for.
    pub(super) fn room(&self) -> usize {
        self.to_guest.room()
    }

    /// Reads from the host's socket into the guest's buffers, and returns how much.
    pub(super) fn read(&mut self, buffers: &mut Segments<'_>) -> usize {
        self.stream
            .as_ref()
            .map_or(0, |stream| self.to_guest.read(stream, buffers))
    }

    /// The header of a packet with `len` bytes of what was read.
    pub(super) fn data_packet(&mut self, len: u32) -> Packet {
        Packet {
            len,
            ..self.header(Op::Rw, 0)
        }
    }

    fn packet(&mut self, op: Op, flags: u32) -> Outgoing {
        Outgoing::Packet(self.header(op, flags))
    }

    /// Every packet tells the guest its credit.
    fn header(&mut self, op: Op, flags: u32) -> Packet {
        self.due.credit = false;
        Packet {
            ports: self.ports,
            op,
            socket_type: TYPE_STREAM,
            flags,
            len: 0,
            credit: self.to_host.announce(),
        }
    }

    /// Tells whoever waits whether the guest has accepted, once.
    fn tell_opener(&mut self, accepted: bool) {
        match std::mem::replace(&mut self.opener, Opener::Guest) {
            Opener::Guest => {}
            Opener::Handle(answer) => {
                // Fails when the handle has given up; it has closed its end then, too.
                let _given_up = answer.try_send(accepted);
            }
            Opener::Program => {
                if accepted && let Some(mut stream) = self.stream.as_ref() {
                    let line = format!("OK {}\n", self.ports.host);
                    // The first bytes on this socket: they fit unless the program is gone.
                    if stream.write_all(line.as_bytes()).is_err() {
                        self.on_hang_up();
                    }
                }
            }
        }
    }
}

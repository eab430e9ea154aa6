//! A connection's bytes from the host to the guest.
//!
//! Nothing is kept: bytes stay in the host's socket until the guest has both a buffer in its queue
//! and room in its socket, so a slow guest slows the host's writer down.

use std::io::ErrorKind;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::packet::Credit;
use crate::virtio::segments::Segments;

/// Most guest buffers that one read fills. Linux offers buffers of somewhat less than 4 KiB.
pub(super) const BURST_MAX: usize = 64;

/// The direction's state.
#[derive(Debug)]
pub(super) struct ToGuest {
    /// False from a read that would block until the socket says otherwise.
    readable: bool,
    /// The host closed its end altogether.
    hung_up: bool,
    /// No more is read: the host has sent its last byte, or the guest wants none.
    over: bool,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    /// What the guest can take.
    credit: Credit,
    /// The guest was asked for room, and has not answered.
    asked: bool,
    /// How many buffers the next read gets. Doubles while reads fill them.
    burst: usize,
}

impl ToGuest {
    /// Nothing was sent; the guest has told `credit`.
    pub(super) fn new(credit: Credit) -> Self {
        Self {
            readable: true,
            hung_up: false,
            over: false,
            sent: Wrapping(0),
            credit,
            asked: false,
            burst: 1,
        }
    }

    /// Every packet of the guest tells its credit.
    pub(super) fn update(&mut self, credit: Credit) {
        self.credit = credit;
        if self.room() > 0 {
            self.asked = false;
        }
    }

    /// Bytes that the guest can take now. A guest that acknowledges what it was never sent, or
    /// shrinks its buffer below what is in it, has none.
    pub(super) fn room(&self) -> usize {
        let in_flight = self.sent - Wrapping(self.credit.fwd_cnt);
        let room = self.credit.buf_alloc.saturating_sub(in_flight.0);
        usize::try_from(room).expect("a usize holds 32 bits")
    }

    /// The socket has bytes, or their end.
    pub(super) fn on_readable(&mut self) {
        self.readable = true;
    }

    /// The host has closed its end in both directions.
    pub(super) fn on_hang_up(&mut self) {
        self.hung_up = true;
        self.readable = true;
    }

    /// The guest wants no more.
    pub(super) fn end(&mut self) {
        self.over = true;
    }

    /// True when no more bytes will be sent.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// True when the host can neither send nor receive any more.
    pub(super) fn is_hung_up(&self) -> bool {
        self.hung_up
    }

    /// True when a read may bring something that the guest has room for.
    pub(super) fn can_read(&self) -> bool {
        self.readable && !self.over && self.room() > 0
    }

    /// True when the guest has to be asked for room. A host that has sent all it will and been
    /// read to its end does not show: one byte of room is needed to see the end.
    pub(super) fn should_ask(&self) -> bool {
        self.readable && !self.over && !self.asked && self.room() == 0
    }

    /// The guest is being asked for room.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// How many buffers to gather for the next read.
    pub(super) fn burst(&self) -> usize {
        self.burst
    }

    /// Reads into the guest's buffers, no more than it has room for. Returns how much was read.
    pub(super) fn read(&mut self, stream: &UnixStream, buffers: &mut Segments<'_>) -> usize {
        let limit = self.room();
        let offered = buffers.len().min(limit);
        match buffers.read_stream(stream.as_fd(), limit) {
            Ok(0) if offered > 0 => {
                self.over = true;
                0
            }
            Ok(read) => {
                self.burst = if read == offered {
                    (self.burst * 2).min(BURST_MAX)
                } else {
                    1
                };
                self.sent += u32::try_from(read).expect("no more than the guest's credit");
                read
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                self.burst = 1;
                0
            }
            Err(_broken) => {
                self.hung_up = true;
                self.over = true;
                0
            }
        }
    }
}

//! Packets of the guest, written to the tap.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::header::{self, HEADER_LEN};
use super::limiter::Limiter;
use super::tap::Tap;
use super::worker::Malformed;
use super::{FRAME_MAX, PACKET_MAX};
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Chain;
use crate::virtio::segments::{PIECES_PER_CALL, Segments};
use crate::virtio::used::{Notifications, Used, give_back_together};

/// Shortest packet: an Ethernet header.
const PACKET_MIN: usize = 14;

/// Most packets that are taken before their buffers go back to the guest.
const BATCH: usize = 32;

/// The transmit queue.
#[derive(Debug)]
pub(super) struct FromGuest {
    pub(super) active: ActiveQueue,
    features: u64,
    notifications: Notifications,
    /// For packets in more pieces than one system call takes.
    whole: Vec<u8>,
    /// The guest may have packets.
    pub(super) waiting: bool,
    limiter: Limiter,
    /// They have gone too fast, and wait.
    pub(super) blocked_until: Option<Instant>,
}

impl FromGuest {
    pub(super) fn new(active: ActiveQueue, features: u64, limiter: Limiter) -> Self {
        Self {
            notifications: Notifications::of(&active.queue),
            active,
            features,
            whole: Vec::new(),
            waiting: true,
            limiter,
            blocked_until: None,
        }
    }

    /// Whether there may be packets that may go.
    pub(super) fn can_send(&self) -> bool {
        self.waiting && self.blocked_until.is_none()
    }

    /// Sends at most `most` packets. True when the driver wants to hear of it.
    pub(super) fn send(
        &mut self,
        memory: &GuestMemoryMmap,
        tap: &Tap,
        most: usize,
    ) -> Result<bool, Malformed> {
        use virtio_queue::QueueT;
        let mut taken = 0;
        self.active
            .queue
            .disable_notification(memory)
            .map_err(Malformed::queue)?;
        let mut used: Vec<Used> = Vec::with_capacity(BATCH);
        while taken < most {
            self.blocked_until = self.limiter.blocked_until();
            if self.blocked_until.is_some() {
                break;
            }
            let Some(chain) = Chain::pop(&mut self.active.queue, memory)? else {
                let queue = &mut self.active.queue;
                if queue
                    .enable_notification(memory)
                    .map_err(Malformed::queue)?
                {
                    continue;
                }
                self.waiting = false;
                break;
            };
            used.push((chain.head, 0));
            taken += 1;
            self.send_one(chain, tap);
            if used.len() == BATCH {
                give_back_together(&mut self.active.queue, memory, &used)?;
                used.clear();
            }
        }
        give_back_together(&mut self.active.queue, memory, &used)?;
        Ok(self.notifications.wanted(&self.active.queue, memory)?)
    }

    /// Drops what is no packet, or what the tap does not take: it is the network's right.
    fn send_one(&mut self, mut chain: Chain<'_>, tap: &Tap) {
        let mut header = [0; HEADER_LEN];
        let packet = &mut chain.readable;
        if !packet.read_front(&mut header)
            || !(PACKET_MIN..=PACKET_MAX).contains(&packet.len())
            || !header::check(&mut header, self.features)
        {
            return;
        }
        self.limiter.take(packet.len());
        let sent = if packet.pieces() < PIECES_PER_CALL {
            let mut frame = Segments::default();
            frame.push(VolatileSlice::from(&mut header[..]));
            frame.append_range(packet, 0, PACKET_MAX);
            frame.write_stream(tap.as_fd())
        } else {
            self.send_whole(&header, packet, tap)
        };
        if let Err(error) = sent {
            tracing::trace!(%error, "the tap did not take a packet");
        }
    }

    fn send_whole(
        &mut self,
        header: &[u8; HEADER_LEN],
        packet: &mut Segments<'_>,
        tap: &Tap,
    ) -> io::Result<usize> {
        self.whole.resize(FRAME_MAX, 0);
        let len = HEADER_LEN + packet.len();
        self.whole[..HEADER_LEN].copy_from_slice(header);
        let read = packet.read_front(&mut self.whole[HEADER_LEN..len]);
        debug_assert!(read, "the room was made after the packet's length");
        let mut frame = Segments::default();
        frame.push(VolatileSlice::from(&mut self.whole[..len]));
        frame.write_stream(tap.as_fd())
    }
}

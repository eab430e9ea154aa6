//! Packets of the tap, read into the guest's buffers.
//!
//! A buffer of the guest is smaller than a packet can be, and a tap cuts off what it cannot put
//! anywhere. So buffers are kept ready for the largest packet, and one read fills as many of them as
//! the packet takes (VIRTIO_NET_F_MRG_RXBUF). A driver without that feature has one buffer for each
//! packet; what is longer than its buffer is dropped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use virtio_queue::QueueT;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::header::{HEADER_LEN, NUM_BUFFERS};
use super::limiter::Limiter;
use super::tap::Tap;
use super::worker::Malformed;
use super::{FRAME_MAX, feature};
use crate::virtio::ActiveQueue;
use crate::virtio::chain::Chain;
use crate::virtio::segments::{PIECES_PER_CALL, Segments};
use crate::virtio::used::{Notifications, Used, give_back_together};

/// The receive queue.
#[derive(Debug)]
pub(super) struct ToGuest {
    pub(super) active: ActiveQueue,
    mergeable: bool,
    notifications: Notifications,
    /// A packet that was read before there was room for it: it is `whole[..pending]`.
    whole: Vec<u8>,
    pending: usize,
    /// The guest has no more buffers; it will notify.
    pub(super) empty: bool,
    /// The tap may have packets.
    pub(super) waiting: bool,
    limiter: Limiter,
    /// They have gone too fast, and wait.
    pub(super) blocked_until: Option<Instant>,
}

/// Buffers that were taken off the queue.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m> {
    chains: VecDeque<Chain<'m>>,
    /// Bytes in them.
    room: usize,
    /// Pieces of guest memory in them.
    pieces: usize,
}

impl<'m> Buffers<'m> {
    fn push(&mut self, chain: Chain<'m>) {
        self.room += chain.writable.len();
        self.pieces += chain.writable.pieces();
        self.chains.push_back(chain);
    }

    fn pop(&mut self) -> Option<Chain<'m>> {
        let chain = self.chains.pop_front()?;
        self.room -= chain.writable.len();
        self.pieces -= chain.writable.pieces();
        Some(chain)
    }
}

impl ToGuest {
    pub(super) fn new(active: ActiveQueue, features: u64, limiter: Limiter) -> Self {
        Self {
            notifications: Notifications::of(&active.queue),
            active,
            mergeable: features & feature::MRG_RXBUF != 0,
            whole: Vec::new(),
            pending: 0,
            empty: false,
            waiting: true,
            limiter,
            blocked_until: None,
        }
    }

    /// Whether there is something to deliver, and where to.
    pub(super) fn can_deliver(&self, buffers: &Buffers<'_>) -> bool {
        match self.pending {
            _ if self.blocked_until.is_some() => false,
            0 => self.waiting && !(self.empty && buffers.chains.is_empty()),
            // What it waits for are more buffers.
            _ => !self.empty,
        }
    }

    /// Delivers at most `most` packets. True when the driver wants to hear of it.
    pub(super) fn deliver<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        buffers: &mut Buffers<'m>,
        tap: &Tap,
        most: usize,
    ) -> Result<bool, Malformed> {
        let mut delivered = 0;
        while delivered < most && (self.waiting || self.pending > 0) {
            self.blocked_until = self.limiter.blocked_until();
            if self.blocked_until.is_some() {
                break;
            }
            self.gather(memory, buffers)?;
            if buffers.chains.is_empty() {
                break;
            }
            if self.pending == 0 && self.has_room_for_any(buffers) {
                let Some(len) = self.read(tap, |this| this.read_into(buffers, tap)) else {
                    break;
                };
                self.give_back(memory, buffers, len)?;
            } else {
                if self.pending == 0 {
                    let Some(len) = self.read(tap, |this| this.read_whole(tap)) else {
                        break;
                    };
                    self.pending = len;
                }
                if !self.place_pending(memory, buffers)? {
                    break;
                }
            }
            delivered += 1;
        }
        Ok(self.notifications.wanted(&self.active.queue, memory)?)
    }

    /// Takes buffers until the largest packet has room in them, or the guest has no more.
    fn gather<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        buffers: &mut Buffers<'m>,
    ) -> Result<(), Malformed> {
        while !self.empty && !self.enough(buffers) {
            let queue = &mut self.active.queue;
            let Some(chain) = Chain::pop(queue, memory)? else {
                self.empty = !queue
                    .enable_notification(memory)
                    .map_err(Malformed::queue)?;
                continue;
            };
            if chain.writable.len() < HEADER_LEN {
                return Err(Malformed::NoRoom(chain.writable.len()));
            }
            buffers.push(chain);
        }
        Ok(())
    }

    fn enough(&self, buffers: &Buffers<'_>) -> bool {
        match self.mergeable {
            true => buffers.room >= FRAME_MAX,
            false => !buffers.chains.is_empty(),
        }
    }

    /// Whether a packet of any length can be read straight into the buffers.
    fn has_room_for_any(&self, buffers: &Buffers<'_>) -> bool {
        match self.mergeable {
            true => buffers.room >= FRAME_MAX && buffers.pieces <= PIECES_PER_CALL,
            false => buffers.chains.front().is_some_and(|chain| {
                chain.writable.len() >= FRAME_MAX && chain.writable.pieces() <= PIECES_PER_CALL
            }),
        }
    }

    /// One packet's length with its header; `None` when there is none.
    fn read(
        &mut self,
        tap: &Tap,
        read: impl FnOnce(&mut Self) -> io::Result<usize>,
    ) -> Option<usize> {
        match read(self) {
            Ok(len) => Some(len),
            Err(error) => {
                self.waiting = false;
                // A queue that the driver does not use is not attached to its tap.
                let detached = error.raw_os_error() == Some(libc::EBADFD);
                if error.kind() != io::ErrorKind::WouldBlock && !detached {
                    tracing::warn!(%error, ?tap, "the tap gives no more packets");
                }
                None
            }
        }
    }

    fn read_into(&self, buffers: &Buffers<'_>, tap: &Tap) -> io::Result<usize> {
        let mut run = Segments::default();
        let count = if self.mergeable { usize::MAX } else { 1 };
        for chain in buffers.chains.iter().take(count) {
            run.append_range(&chain.writable, 0, FRAME_MAX);
        }
        run.read_stream(tap.as_fd(), FRAME_MAX)
    }

    fn read_whole(&mut self, tap: &Tap) -> io::Result<usize> {
        self.whole.resize(FRAME_MAX, 0);
        let mut run = Segments::default();
        run.push(VolatileSlice::from(self.whole.as_mut_slice()));
        run.read_stream(tap.as_fd(), FRAME_MAX)
    }

    /// Copies the packet that waits into the guest's buffers. False when it still waits.
    fn place_pending(
        &mut self,
        memory: &GuestMemoryMmap,
        buffers: &mut Buffers<'_>,
    ) -> Result<bool, Malformed> {
        let len = self.pending;
        let room = match self.mergeable {
            true => buffers.room,
            false => buffers.chains.front().map_or(0, |c| c.writable.len()),
        };
        if room < len {
            // More buffers may come, unless the packet has to fit into one or they all are here.
            let all_here = buffers.chains.len() == usize::from(self.active.queue.size());
            if !self.mergeable || all_here {
                self.pending = 0;
                return Ok(true);
            }
            return Ok(false);
        }
        let mut at = 0;
        for chain in &buffers.chains {
            let mut run = Segments::default();
            let part = run.append_range(&chain.writable, 0, len - at);
            let written = run.write_front(&self.whole[at..at + part]);
            debug_assert!(written, "the part was measured");
            at += part;
            if at == len {
                break;
            }
        }
        self.pending = 0;
        self.give_back(memory, buffers, len)?;
        Ok(true)
    }

    /// Gives the guest the buffers that `len` bytes, header included, were written to.
    fn give_back(
        &mut self,
        memory: &GuestMemoryMmap,
        buffers: &mut Buffers<'_>,
        len: usize,
    ) -> Result<(), Malformed> {
        self.limiter.take(len.saturating_sub(HEADER_LEN));
        let mut used: Vec<Used> = Vec::new();
        let mut first = None;
        let mut left = len;
        while left > 0
            && let Some(chain) = buffers.pop()
        {
            let part = left.min(chain.writable.len());
            left -= part;
            used.push((
                chain.head,
                u32::try_from(part).expect("no more than FRAME_MAX"),
            ));
            first.get_or_insert(chain);
        }
        let count = u16::try_from(used.len()).expect("no more than the queue has");
        if let Some(first) = first {
            let mut field = Segments::default();
            field.append_range(&first.writable, NUM_BUFFERS, HEADER_LEN - NUM_BUFFERS);
            let written = field.write_front(&count.to_le_bytes());
            debug_assert!(written, "a buffer has room for a header");
        }
        give_back_together(&mut self.active.queue, memory, &used)?;
        Ok(())
    }

    /// Leaves the buffers that were not used on the queue.
    pub(super) fn put_back(&mut self, buffers: &Buffers<'_>) {
        let count = u16::try_from(buffers.chains.len()).expect("no more than the queue has");
        let queue = &mut self.active.queue;
        queue.set_next_avail(queue.next_avail().wrapping_sub(count));
    }
}

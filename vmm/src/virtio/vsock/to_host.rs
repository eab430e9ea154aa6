//! A connection's bytes from the guest to the host.
//!
//! Bytes go from guest memory straight to the host's socket. What it does not take is kept, at most
//! [`BUFFER_LEN`] bytes of it: that is the credit that the guest is given, so a slow host program
//! slows the guest's writer down.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::packet::Credit;
use crate::virtio::segments::Segments;

/// Most bytes that are kept for one connection: four packets of Linux.
pub(super) const BUFFER_LEN: usize = 256 * 1024;

/// `buf_alloc` in every packet to the guest.
const BUF_ALLOC: u32 = 256 * 1024;

/// The guest is told of new room when it is at least this much.
const CREDIT_STEP: u32 = BUF_ALLOC / 4;

/// The guest sent more than there was room for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

/// Whether there is more to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Both sides go on.
    Open,
    /// The guest sends no more; the host is told when it has everything.
    Ending,
    /// The host has everything, or wants no more.
    Over,
}

/// The direction's state.
#[derive(Debug)]
pub(super) struct ToHost {
    buffer: VecDeque<u8>,
    /// False from a write that would block until the socket says otherwise.
    writable: bool,
    flow: Flow,
    /// The host closed its end for reading.
    refused: bool,
    /// Bytes that have left for the host.
    forwarded: Wrapping<u32>,
    /// What the guest knows of that.
    announced: Wrapping<u32>,
}

impl ToHost {
    /// Nothing was sent yet.
    pub(super) fn new() -> Self {
        Self {
            buffer: VecDeque::new(),
            writable: true,
            flow: Flow::Open,
            refused: false,
            forwarded: Wrapping(0),
            announced: Wrapping(0),
        }
    }

    /// Takes a payload. Bytes that the host does not want any more are dropped.
    pub(super) fn push(
        &mut self,
        stream: &UnixStream,
        mut payload: Segments<'_>,
    ) -> Result<(), Overrun> {
        let len = payload.len();
        if self.buffer.len() + len > BUFFER_LEN {
            return Err(Overrun);
        }
        while payload.len() > 0
            && self.buffer.is_empty()
            && self.writable
            && self.flow == Flow::Open
        {
            match payload.write_stream(stream.as_fd()) {
                Ok(_written) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_broken) => self.refuse(),
            }
        }
        if self.flow == Flow::Over {
            self.forward(len);
            return Ok(());
        }
        let kept = payload.len();
        self.forward(len - kept);
        if kept > 0 {
            self.keep(payload);
        }
        Ok(())
    }

    fn keep(&mut self, mut payload: Segments<'_>) {
        let start = self.buffer.len();
        self.buffer.resize(start + payload.len(), 0);
        let (front, back) = self.buffer.as_mut_slices();
        let (front, back) = if start < front.len() {
            (&mut front[start..], back)
        } else {
            let from = start - front.len();
            (&mut [][..], &mut back[from..])
        };
        let complete = payload.read_front(front) && payload.read_front(back);
        debug_assert!(complete, "the buffer grew by the length of the payload");
    }

    /// The socket takes bytes again.
    pub(super) fn on_writable(&mut self, stream: &UnixStream) {
        self.writable = true;
        self.flush(stream);
    }

    fn flush(&mut self, mut stream: &UnixStream) {
        while !self.buffer.is_empty() && self.writable {
            let (front, back) = self.buffer.as_slices();
            match stream.write_vectored(&[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(written) => {
                    self.buffer.drain(..written);
                    self.forward(written);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_broken) => self.refuse(),
            }
        }
        if self.buffer.is_empty() {
            // A connection that once was slow does not keep its memory.
            self.buffer = VecDeque::new();
            if self.flow == Flow::Ending {
                self.flow = Flow::Over;
                // Fails when the host is gone, which needs no telling then.
                let _gone = stream.shutdown(Shutdown::Write);
            }
        }
    }

    /// The guest sends no more.
    pub(super) fn end(&mut self, stream: &UnixStream) {
        if self.flow == Flow::Open {
            self.flow = Flow::Ending;
            self.flush(stream);
        }
    }

    /// The host wants no more.
    pub(super) fn refuse(&mut self) {
        self.refused = true;
        self.flow = Flow::Over;
        let dropped = self.buffer.len();
        self.buffer = VecDeque::new();
        self.forward(dropped);
    }

    /// True when the host closed its end for reading, which the guest should know.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    /// True when the guest said that it sends no more.
    pub(super) fn is_ended(&self) -> bool {
        self.flow == Flow::Ending || (self.flow == Flow::Over && !self.refused)
    }

    /// True when nothing is left to write.
    pub(super) fn is_drained(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Writes what is left, and blocks for that.
    pub(super) fn drain(&self, mut stream: &UnixStream, timeout: Duration) -> std::io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(timeout))?;
        let (front, back) = self.buffer.as_slices();
        stream.write_all(front)?;
        stream.write_all(back)
    }

    /// True when the guest should be told that there is room again.
    pub(super) fn has_news(&self) -> bool {
        (self.forwarded - self.announced).0 >= CREDIT_STEP
    }

    /// The credit that the next packet announces.
    pub(super) fn announce(&mut self) -> Credit {
        self.announced = self.forwarded;
        Credit {
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.announced.0,
        }
    }

    fn forward(&mut self, count: usize) {
        let count = u32::try_from(count).expect("no more than the buffer holds");
        self.forwarded += count;
    }
}

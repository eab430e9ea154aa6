//! Commands of the driver (virtio 1.2 section 5.1.6.5): how many pairs of queues it uses. Runs on
//! the control queue's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::tap::Tap;
use super::worker::wake;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::queue_worker::RequestHandler;

const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;

const OK: u8 = 0;
const ERROR: u8 = 1;

/// The driver left no room for an answer: the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a command has no room for its answer")]
    NoAnswer,
}

/// Decides which queues of the tap get packets.
#[derive(Debug)]
pub(super) struct PairSwitch {
    taps: Vec<Tap>,
    pairs: Arc<AtomicU16>,
    /// What wakes the workers of the pairs.
    wakers: Vec<EventFd>,
}

impl PairSwitch {
    /// For these queues; `pairs` says how many of them are in use.
    pub(super) fn new(taps: &[Tap], pairs: &Arc<AtomicU16>) -> io::Result<Self> {
        Ok(Self {
            taps: taps.iter().map(Tap::try_clone).collect::<Result<_, _>>()?,
            pairs: Arc::clone(pairs),
            wakers: Vec::new(),
        })
    }

    /// Tells these workers, too, of what changes.
    pub(super) fn tell(&mut self, waker: EventFd) {
        self.wakers.push(waker);
    }

    /// Lets as many queues have packets as the driver uses.
    pub(super) fn restore(&self) -> io::Result<()> {
        let pairs = usize::from(self.pairs.load(Ordering::Acquire));
        // A tap with one queue does not let go of it.
        if self.taps.len() > 1 {
            for (index, tap) in self.taps.iter().enumerate() {
                tap.attach(index < pairs)?;
            }
        }
        Ok(())
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        let before = self.pairs.swap(pairs, Ordering::AcqRel);
        let switched = self.restore();
        if switched.is_err() {
            self.pairs.store(before, Ordering::Release);
        }
        self.wakers.iter().for_each(wake);
        switched
    }

    fn command(&self, class: u8, command: u8, pairs: u16) -> u8 {
        let known = class == CLASS_MQ && command == MQ_VQ_PAIRS_SET;
        let possible = pairs >= 1 && usize::from(pairs) <= self.taps.len();
        if !known || !possible {
            return ERROR;
        }
        match self.set_pairs(pairs) {
            Ok(()) => OK,
            Err(error) => {
                tracing::warn!(%error, pairs, "the tap's queues could not be switched");
                ERROR
            }
        }
    }
}

impl RequestHandler for PairSwitch {
    type Malformed = Malformed;

    fn serve(&mut self, mut chain: Chain<'_>) -> Result<u32, Malformed> {
        let mut command = [0; 4];
        let answer = match chain.readable.read_front(&mut command) {
            true => {
                let [class, name, low, high] = command;
                self.command(class, name, u16::from_le_bytes([low, high]))
            }
            false => ERROR,
        };
        if !chain.writable.write_front(&[answer]) {
            return Err(Malformed::NoAnswer);
        }
        Ok(1)
    }
}

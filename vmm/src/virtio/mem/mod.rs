//! virtio-mem, memory that comes and goes (virtio 1.3 section 5.15).
//!
//! The device has a range of the guest's physical addresses, in blocks. The control thread says how
//! much memory the guest is to have there ([`MemHandle::request`]); the guest's driver plugs blocks or
//! unplugs them until it has that, as far as it can, and asks for each step on the one queue, which the
//! thread "mem" serves:
//!
//! ```text
//!  control thread                         guest                          "mem"
//!  request(bytes) ── configuration has changed ──> driver
//!                                          driver ── PLUG or UNPLUG, some blocks ──> Region
//!  progress() <───────────────────── so much is plugged ──────────────────────────────┘
//! ```
//!
//! A plugged block takes memory of the host as the guest touches it; an unplugged one gives it back. A
//! guest that touches usable blocks which are not plugged gets memory, too, as does one that does not
//! unplug what it is asked to: more than it ever was allowed to have, rounded up, it cannot get.

mod region;
mod request;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use vm_memory::GuestRegionMmap;

use self::region::Region;
use self::request::{Answer, Request};
use super::chain::{Chain, ChainError};
use super::queue_worker::{QueueWorker, RequestHandler};
use super::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::machine::layout::{MIB, Range};

/// Bytes in a block: a huge page, and what Linux can take out of memory that is in use.
pub(crate) const BLOCK_SIZE: u64 = 2 * MIB;

const NAME: &str = "mem";
const DEVICE_TYPE: u16 = 24;

/// One queue, of requests. Linux has one of them under way.
const QUEUE_SIZES: [u16; 1] = [16];

/// `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE` (section 5.15.3): the driver does not read blocks that are not
/// plugged, which would take memory for them.
const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// The device.
#[derive(Debug)]
pub(crate) struct Mem {
    handle: MemHandle,
    worker: Option<QueueWorker>,
}

/// The control thread's way to the device.
#[derive(Debug, Clone)]
pub(crate) struct MemHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    region: Mutex<Region>,
    driver: Mutex<Driver>,
    /// Bytes that are plugged.
    plugged: watch::Sender<u64>,
}

/// Who is told of a new request.
#[derive(Debug, Default)]
struct Driver {
    /// While the device is active.
    interrupt: Option<Arc<dyn Interrupt>>,
    /// A request has come while it was not.
    has_missed: bool,
}

impl Mem {
    /// An idle device, none of whose addresses is usable. The range is made of whole blocks.
    pub(crate) fn new(range: Range) -> (Self, MemHandle) {
        let handle = MemHandle {
            shared: Arc::new(Shared {
                region: Mutex::new(Region::new(range)),
                driver: Mutex::default(),
                plugged: watch::Sender::new(0),
            }),
        };
        let device = Self {
            handle: handle.clone(),
            worker: None,
        };
        (device, handle)
    }
}

impl MemHandle {
    /// All addresses that the device ever has.
    pub(crate) fn range(&self) -> Range {
        self.region().range()
    }

    /// Bytes from the first address on that have memory behind them.
    pub(crate) fn usable(&self) -> u64 {
        self.region().usable()
    }

    /// Bytes that the guest was asked to have.
    pub(crate) fn requested(&self) -> u64 {
        self.region().requested()
    }

    /// Bytes that it has.
    pub(crate) fn plugged(&self) -> u64 {
        self.region().plugged()
    }

    /// What [`MemHandle::plugged`] says, from change to change.
    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.shared.plugged.subscribe()
    }

    /// Makes the addresses of `extent` usable. They begin where the usable ones end, are whole blocks,
    /// and the guest and every device know of them already.
    pub(crate) fn extend(&self, extent: Arc<GuestRegionMmap>) {
        self.region().extend(extent);
    }

    /// Asks the guest to have so many bytes plugged: whole blocks, not more than are usable.
    pub(crate) fn request(&self, bytes: u64) {
        self.region().request(bytes);
        self.ask_again();
    }

    /// Has the driver look at once what it is asked for, and try what it could not do before.
    pub(crate) fn ask_again(&self) {
        let mut driver = self.driver();
        match &driver.interrupt {
            Some(interrupt) => interrupt.config(),
            None => driver.has_missed = true,
        }
    }

    fn region(&self) -> MutexGuard<'_, Region> {
        let region = &self.shared.region;
        region.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn driver(&self) -> MutexGuard<'_, Driver> {
        let driver = &self.shared.driver;
        driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Mem {
    fn name(&self) -> &'static str {
        NAME
    }

    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_UNPLUGGED_INACCESSIBLE
    }

    /// `struct virtio_mem_config` (section 5.15.4).
    fn config(&self) -> Vec<u8> {
        let region = self.handle.region();
        let fields = [
            BLOCK_SIZE,
            // No node, and padding.
            0,
            region.range().start,
            region.range().size,
            region.usable(),
            region.plugged(),
            region.requested(),
        ];
        fields
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = Arc::clone(&activation.interrupt);
        let requests = Requests(self.handle.clone());
        let worker = QueueWorker::start(NAME, NAME.to_owned(), activation, requests)?;
        self.worker = Some(worker);
        let mut driver = self.handle.driver();
        if std::mem::take(&mut driver.has_missed) {
            interrupt.config();
        }
        driver.interrupt = Some(interrupt);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<ActiveQueue> {
        self.handle.driver().interrupt = None;
        self.worker.take().map_or_else(Vec::new, QueueWorker::stop)
    }

    // What is plugged stays so when the driver resets the device (section 5.15.6.1): the next one asks
    // for it to be unplugged.

    fn state(&self) -> serde_json::Value {
        serde_json::to_value(self.handle.region().state()).expect("numbers are JSON")
    }
}

impl Drop for Mem {
    fn drop(&mut self) {
        self.deactivate();
    }
}

#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a request has no room for its answer")]
    NoRoom,
}

struct Requests(MemHandle);

impl RequestHandler for Requests {
    type Malformed = Malformed;

    fn serve(&mut self, mut chain: Chain<'_>) -> Result<u32, Malformed> {
        let answer = match Request::read(&mut chain) {
            Some(request) => {
                let mut region = self.0.region();
                let (before, answer) = (region.plugged(), region.serve(request));
                let after = region.plugged();
                drop(region);
                if before != after {
                    self.0.shared.plugged.send_replace(after);
                }
                answer
            }
            None => Answer::Error,
        };
        answer.write(&mut chain)
    }
}

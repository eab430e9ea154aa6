//! virtio-pmem, persistent memory (virtio 1.2 section 5.19): a disk that the guest reads as memory.
//!
//! The disk's files are mapped ([`Mapping`]) and shown to the guest read-only, in a window of its
//! physical addresses ([`Window`]). A file system that is mounted with DAX reads them there: what it
//! has read is in the host's page cache, once for all guests, and not in the guest's memory.
//!
//! The thread "pmem" answers flushes, of which a reader sends none. The guest finds the disk by the
//! serial number in the vendor data of its PCI function (section 4.1.4.8): the device type has none.
#![expect(unsafe_code, reason = "files in this process's memory")]

mod mapping;

use serde_json::json;

pub(crate) use self::mapping::{Mapping, MappingError};
use super::chain::{Chain, ChainError};
use super::queue_worker::{QueueWorker, RequestHandler};
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use crate::machine::windows::Window;

const NAME: &str = "pmem";
const DEVICE_TYPE: u16 = 27;

/// One queue, of flushes.
const QUEUE_SIZES: [u16; 1] = [16];

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH` (section 5.19.6).
const FLUSH: u32 = 0;

/// `ret` of a response: nothing was left to write.
const DONE: u32 = 0;
/// `ret` of a response: the request is none.
const REFUSED: u32 = 1;

/// A disk as persistent memory.
#[derive(Debug)]
pub(crate) struct Pmem {
    serial: String,
    window: Window,
    worker: Option<QueueWorker>,
}

impl Pmem {
    /// An idle device; what it shows is there already.
    pub(crate) fn new(serial: String, window: Window) -> Self {
        Self {
            serial,
            window,
            worker: None,
        }
    }
}

impl VirtioDevice for Pmem {
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
        0
    }

    /// `struct virtio_pmem_config` (section 5.19.4): where the memory is, and how much.
    fn config(&self) -> Vec<u8> {
        let mut config = self.window.address().to_le_bytes().to_vec();
        config.extend(self.window.size().to_le_bytes());
        config
    }

    fn vendor_data(&self) -> &[u8] {
        self.serial.as_bytes()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker = QueueWorker::start(NAME, NAME.to_owned(), activation, Flushes)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<ActiveQueue> {
        self.worker.take().map_or_else(Vec::new, QueueWorker::stop)
    }

    fn state(&self) -> serde_json::Value {
        json!({
            "serial": self.serial,
            "address": self.window.address(),
            "size_bytes": self.window.size(),
        })
    }
}

impl Drop for Pmem {
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

struct Flushes;

impl RequestHandler for Flushes {
    type Malformed = Malformed;

    fn serve(&mut self, mut chain: Chain<'_>) -> Result<u32, Malformed> {
        let mut kind = [0; 4];
        let known = chain.readable.read_front(&mut kind) && u32::from_le_bytes(kind) == FLUSH;
        // Nothing was written: the memory is read-only.
        let answer = if known { DONE } else { REFUSED };
        if !chain.writable.write_front(&answer.to_le_bytes()) {
            return Err(Malformed::NoRoom);
        }
        Ok(4)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::machine::layout::WINDOWS_START;
    use crate::machine::windows::testing;
    use crate::virtio::testing::*;

    const DATA: u64 = 0x1_0000;

    struct Driver {
        memory: GuestMemoryMmap,
        queue: DriverQueue,
        interrupts: Arc<Interrupts>,
        pmem: Pmem,
    }

    fn driver() -> Driver {
        let memory = guest_memory(1 << 20);
        let queue = DriverQueue::new(&memory, 0, QUEUE_SIZES[0], true);
        let interrupts = Arc::new(Interrupts::default());
        let mut pmem = Pmem::new("image".to_owned(), testing::window());
        pmem.activate(activation(&memory, &[&queue], &interrupts))
            .unwrap();
        Driver {
            memory,
            queue,
            interrupts,
            pmem,
        }
    }

    #[test]
    fn configuration_says_where_the_memory_is() {
        let pmem = Pmem::new("image".to_owned(), testing::window());
        let config = pmem.config();
        assert_eq!(config[..8], WINDOWS_START.to_le_bytes());
        assert_eq!(config[8..], pmem.window.size().to_le_bytes());
        assert_eq!(pmem.vendor_data(), b"image");
    }

    #[test]
    fn flushes_are_done_and_other_requests_refused() {
        let mut driver = driver();
        for (kind, answer) in [(FLUSH, DONE), (1, REFUSED), (u32::MAX, REFUSED)] {
            let at = GuestAddress(DATA);
            driver.memory.write_obj(kind, at).unwrap();
            let room = Buffer::writable(DATA + 4, 4);
            driver.queue.add(0, &[Buffer::readable(DATA, 4), room]);
            driver.queue.kick();
            let queue = &mut driver.queue;
            let used = driver.interrupts.wait_for(|| queue.take_used()).unwrap();
            assert_eq!(used.1, 4);
            let said: u32 = driver.memory.read_obj(GuestAddress(DATA + 4)).unwrap();
            assert_eq!(said, answer, "{kind}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_chain_is_survived((descriptors, heads) in any_chains(0x4000, DATA)) {
            let mut driver = driver();
            offer_anything(&mut driver.queue, &descriptors, &heads);
            driver.queue.settle(&driver.interrupts);
            prop_assert_eq!(driver.pmem.deactivate().len(), 1);
        }
    }
}

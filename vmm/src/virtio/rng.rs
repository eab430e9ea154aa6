//! virtio-rng, the entropy device (virtio 1.2 section 5.4): fills the driver's buffers from the
//! host's `getrandom(2)`.
//!
//! The thread "rng" serves the one queue. A request gets at most [`REQUEST_MAX`] bytes, which the
//! specification allows (section 5.4.6): no request keeps the thread busy for long.
#![expect(unsafe_code, reason = "getrandom(2)")]

use serde_json::json;

use super::chain::{Chain, ChainError};
use super::queue_worker::{QueueWorker, RequestHandler};
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};

const NAME: &str = "rng";
const DEVICE_TYPE: u16 = 4;

/// Linux keeps one request under way.
const QUEUE_SIZES: [u16; 1] = [16];

/// Most random bytes for one request.
const REQUEST_MAX: usize = 4096;

/// Bytes that one `getrandom` call returns whole, whatever signals arrive.
const GETRANDOM_WHOLE: usize = 256;

/// The entropy device. It has no state beside its queue.
#[derive(Debug, Default)]
pub(crate) struct Rng {
    worker: Option<QueueWorker>,
}

impl Rng {
    /// An idle device.
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
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

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker = QueueWorker::start(NAME, NAME.to_owned(), activation, Entropy)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<ActiveQueue> {
        self.worker.take().map_or_else(Vec::new, QueueWorker::stop)
    }

    fn state(&self) -> serde_json::Value {
        json!({})
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.deactivate();
    }
}

#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a request has no room for random bytes")]
    NoRoom,
    #[error("the host has no random bytes: {0}")]
    Source(std::io::Error),
}

struct Entropy;

impl RequestHandler for Entropy {
    type Malformed = Malformed;

    fn serve(&mut self, mut chain: Chain<'_>) -> Result<u32, Malformed> {
        let wanted = chain.writable.len().min(REQUEST_MAX);
        if wanted == 0 {
            return Err(Malformed::NoRoom);
        }
        let mut buffer = [0; REQUEST_MAX];
        let bytes = &mut buffer[..wanted];
        for chunk in bytes.chunks_mut(GETRANDOM_WHOLE) {
            fill_random(chunk).map_err(Malformed::Source)?;
        }
        let written = chain.writable.write_front(bytes);
        debug_assert!(written, "no more was made than there is room for");
        Ok(u32::try_from(wanted).expect("REQUEST_MAX fits in 32 bits"))
    }
}

/// Fills `buffer`, at most [`GETRANDOM_WHOLE`] bytes.
fn fill_random(buffer: &mut [u8]) -> std::io::Result<()> {
    // SAFETY: the buffer is ours to write, for its whole length.
    let filled = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if usize::try_from(filled) == Ok(buffer.len()) {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::{QUEUE_SIZES, REQUEST_MAX, Rng, VirtioDevice};
    use crate::virtio::testing::*;

    const DATA: u64 = 0x1_0000;

    struct Driver {
        memory: GuestMemoryMmap,
        queue: DriverQueue,
        interrupts: Arc<Interrupts>,
        rng: Rng,
    }

    fn driver() -> Driver {
        let memory = guest_memory(1 << 20);
        let queue = DriverQueue::new(&memory, 0, QUEUE_SIZES[0], true);
        let interrupts = Arc::new(Interrupts::default());
        let mut rng = Rng::new();
        rng.activate(activation(&memory, &[&queue], &interrupts))
            .unwrap();
        Driver {
            memory,
            queue,
            interrupts,
            rng,
        }
    }

    impl Driver {
        fn fill(&mut self, buffers: &[Buffer]) -> u32 {
            self.queue.add(0, buffers);
            self.queue.kick();
            let queue = &mut self.queue;
            self.interrupts.wait_for(|| queue.take_used()).unwrap().1
        }
    }

    #[test]
    fn a_buffer_is_filled_with_other_bytes_each_time() {
        let mut driver = driver();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let halves = [Buffer::writable(DATA, 40), Buffer::writable(DATA + 40, 24)];
            assert_eq!(driver.fill(&halves), 64);
            let mut bytes = [0; 64];
            driver
                .memory
                .read_slice(&mut bytes, GuestAddress(DATA))
                .unwrap();
            assert!(!seen.contains(&bytes) && bytes != [0; 64]);
            seen.push(bytes);
        }
    }

    #[test]
    fn a_large_request_is_answered_in_part() {
        let mut driver = driver();
        let used = driver.fill(&[Buffer::writable(DATA, 100_000)]);
        assert_eq!(used as usize, REQUEST_MAX);
        let after = GuestAddress(DATA + REQUEST_MAX as u64);
        assert_eq!(driver.memory.read_obj::<u64>(after).unwrap(), 0);
    }

    #[test]
    fn a_request_without_room_needs_a_reset() {
        let mut driver = driver();
        driver.queue.add(0, &[Buffer::readable(DATA, 64)]);
        driver.queue.kick();
        let interrupts = &driver.interrupts;
        let reset = interrupts.wait_for(|| interrupts.reset_is_needed().then_some(()));
        assert!(reset.is_some());
        assert_eq!(driver.rng.deactivate().len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_chain_is_survived((descriptors, heads) in any_chains(0x4000, DATA)) {
            let mut driver = driver();
            offer_anything(&mut driver.queue, &descriptors, &heads);
            driver.queue.settle(&driver.interrupts);
            prop_assert_eq!(driver.rng.deactivate().len(), 1);
        }
    }
}

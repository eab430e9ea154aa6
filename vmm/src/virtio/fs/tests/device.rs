//! The device, as a driver sees it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};

use super::guest::*;
use crate::virtio::fs::wire::opcode;
use crate::virtio::fs::*;
use crate::virtio::testing::*;

/// A driver of the whole device.
struct Driver {
    memory: vm_memory::GuestMemoryMmap,
    requests: DriverQueue,
    forgets: DriverQueue,
    interrupts: Arc<Interrupts>,
    fs: Fs,
    guest: Guest,
}

fn driver() -> Driver {
    let guest = Guest::new();
    let memory = guest_memory(1 << 20);
    let forgets = DriverQueue::new(&memory, 0, QUEUE_SIZES[0], true);
    let requests = DriverQueue::new(&memory, DriverQueue::LEN, QUEUE_SIZES[1], true);
    let interrupts = Arc::new(Interrupts::default());
    let mut fs = Fs::new(Arc::clone(&guest.server));
    fs.activate(activation(&memory, &[&forgets, &requests], &interrupts))
        .unwrap();
    Driver {
        memory,
        requests,
        forgets,
        interrupts,
        fs,
        guest,
    }
}

const REQUEST: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const ANSWER: u64 = 0x6_0000;

impl Driver {
    fn put_request(&self, opcode: u32, node: u64, arguments: &[u8], data: usize) -> u32 {
        let length = u32::try_from(40 + arguments.len() + data).unwrap();
        let message = args()
            .u32(length)
            .u32(opcode)
            .u64(1)
            .u64(node)
            .raw(&[0; 16]);
        let message = message.raw(arguments).0;
        self.memory
            .write_slice(&message, GuestAddress(REQUEST))
            .unwrap();
        u32::try_from(message.len()).unwrap()
    }
}

#[test]
fn a_write_of_many_pieces_goes_through_the_queue_into_the_file() {
    let mut driver = driver();
    let (node, handle) = driver
        .guest
        .create(driver.guest.volume(), "file", 0o600)
        .unwrap();
    let data: Vec<u8> = (0..100_000_u32)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    driver
        .memory
        .write_slice(&data, GuestAddress(DATA))
        .unwrap();
    let arguments = args().u64(handle).u64(0).u32(100_000).raw(&[0; 20]).0;
    let length = driver.put_request(opcode::WRITE, node, &arguments, data.len());
    let mut buffers = vec![Buffer::readable(REQUEST, length)];
    buffers.extend((0..200).map(|n| Buffer::readable(DATA + n * 500, 500)));
    buffers.push(Buffer::writable(ANSWER, 24));
    driver.requests.add(0, &buffers);
    driver.requests.kick();
    let queue = &mut driver.requests;
    let used = driver.interrupts.wait_for(|| queue.take_used()).unwrap();
    assert_eq!(used, (0, 24));
    assert_eq!(fs::read(driver.guest.path("file")).unwrap(), data);
    assert_eq!(driver.fs.deactivate().len(), 2);
    let file = fs::File::open(driver.guest.path("file")).unwrap();
    file.read_at(&mut [0; 1], 0).unwrap();
}

#[test]
fn a_forget_has_no_answer_and_a_request_without_room_for_one_needs_a_reset() {
    let mut driver = driver();
    let length = driver.put_request(opcode::FORGET, 5, &1_u64.to_le_bytes(), 0);
    driver.forgets.add(0, &[Buffer::readable(REQUEST, length)]);
    driver.forgets.kick();
    let queue = &mut driver.forgets;
    let used = driver.interrupts.wait_for(|| queue.take_used()).unwrap();
    assert_eq!(used, (0, 0));
    let length = driver.put_request(opcode::GETATTR, 1, &[0; 16], 0);
    driver.requests.add(0, &[Buffer::readable(REQUEST, length)]);
    driver.requests.kick();
    let interrupts = &driver.interrupts;
    assert!(
        interrupts
            .wait_for(|| interrupts.reset_is_needed().then_some(()))
            .is_some()
    );
}

#[test]
fn configuration_space_has_the_tag_and_one_queue_of_requests() {
    let fs = Fs::new(Arc::new(Server::new().unwrap()));
    let config = fs.config();
    assert_eq!(config.len(), 40);
    assert!(config.starts_with(b"volumes\0"));
    assert_eq!(u32_at(&config, 36), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_chain_is_survived((descriptors, heads) in any_chains(0x8000, REQUEST)) {
        let mut driver = driver();
        offer_anything(&mut driver.requests, &descriptors, &heads);
        driver.requests.settle(&driver.interrupts);
        prop_assert_eq!(driver.fs.deactivate().len(), 2);
    }
}

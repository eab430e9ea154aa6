//! The device from the driver's side, and memory behind it.

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use super::*;
use crate::machine::memory;
use crate::virtio::testing::*;

const DATA: u64 = 0x1_0000;
const ANSWER: u64 = DATA + 64;

/// Where the device's addresses begin, how many there are, and how many are usable, in blocks.
const START: u64 = 1 << 32;
const BLOCKS: u64 = 200;
const USABLE: u64 = 100;

/// Types of requests, and of answers.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

struct Machine {
    memory: GuestMemoryMmap,
    queue: DriverQueue,
    interrupts: Arc<Interrupts>,
    device: Mem,
    handle: MemHandle,
}

fn device() -> (GuestMemoryMmap, Mem, MemHandle) {
    let memory = guest_memory(1 << 20);
    let (device, handle) = Mem::new(Range {
        start: START,
        size: BLOCKS * BLOCK_SIZE,
    });
    // In two extents.
    let (first, second) = (30, USABLE - 30);
    let mut at = START;
    let mut memory = memory;
    for blocks in [first, second] {
        let size = blocks * BLOCK_SIZE;
        let (extended, extent) = memory::extended(&memory, Range { start: at, size }).unwrap();
        handle.extend(extent);
        memory = extended;
        at += size;
    }
    (memory, device, handle)
}

fn machine() -> Machine {
    let (memory, mut device, handle) = device();
    let queue = DriverQueue::new(&memory, 0, QUEUE_SIZES[0], true);
    let interrupts = Arc::new(Interrupts::default());
    device
        .activate(activation(&memory, &[&queue], &interrupts))
        .unwrap();
    Machine {
        memory,
        queue,
        interrupts,
        device,
        handle,
    }
}

impl Machine {
    /// Sends a request and returns the answer's type and state.
    fn ask(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&blocks.to_le_bytes());
        let at = GuestAddress(DATA);
        self.memory.write_slice(&request, at).unwrap();
        self.send(&[Buffer::readable(DATA, 24), Buffer::writable(ANSWER, 10)])
    }

    fn send(&mut self, buffers: &[Buffer]) -> (u16, u16) {
        let unused = [0xee; 10];
        self.memory
            .write_slice(&unused, GuestAddress(ANSWER))
            .unwrap();
        self.queue.add(0, buffers);
        self.queue.kick();
        let queue = &mut self.queue;
        let used = self.interrupts.wait_for(|| queue.take_used()).unwrap();
        assert_eq!(used.1, 10);
        let read = |at| self.memory.read_obj::<u16>(GuestAddress(at)).unwrap();
        (read(ANSWER), read(ANSWER + 8))
    }

    fn plugged_blocks(&self) -> u64 {
        let config = self.device.config();
        let field = u64::from_le_bytes(config[40..48].try_into().unwrap());
        assert_eq!(field, self.handle.plugged());
        assert_eq!(field, *self.handle.progress().borrow());
        field / BLOCK_SIZE
    }
}

fn address(block: u64) -> u64 {
    START + block * BLOCK_SIZE
}

#[test]
fn configuration_says_where_memory_can_be_and_how_much_there_shall_be() {
    let (_memory, device, handle) = device();
    handle.request(7 * BLOCK_SIZE);
    let config = device.config();
    let fields: Vec<u64> = config
        .chunks(8)
        .map(|field| u64::from_le_bytes(field.try_into().unwrap()))
        .collect();
    let block = BLOCK_SIZE;
    let wanted = [
        block,
        0,
        START,
        BLOCKS * block,
        USABLE * block,
        0,
        7 * block,
    ];
    assert_eq!(fields, wanted);
}

#[test]
fn blocks_are_plugged_up_to_what_is_asked_for_and_no_further() {
    let mut machine = machine();
    assert_eq!(machine.ask(PLUG, address(0), 1).0, NACK, "nothing is");
    machine.handle.request(50 * BLOCK_SIZE);
    assert_eq!(machine.ask(PLUG, address(20), 40).0, ACK);
    assert_eq!(machine.plugged_blocks(), 40);
    assert_eq!(machine.ask(PLUG, address(0), 11).0, NACK);
    assert_eq!(machine.ask(PLUG, address(15), 6).0, ERROR, "the last is");
    assert_eq!(machine.ask(PLUG, address(0), 10).0, ACK);
    assert_eq!(machine.plugged_blocks(), 50);
    // A smaller request takes nothing away by itself.
    machine.handle.request(5 * BLOCK_SIZE);
    assert_eq!(machine.plugged_blocks(), 50);
    assert_eq!(
        machine.ask(UNPLUG, address(19), 2).0,
        ERROR,
        "the first isn't"
    );
    assert_eq!(machine.ask(UNPLUG, address(20), 40).0, ACK);
    assert_eq!(machine.plugged_blocks(), 10);
    assert_eq!(machine.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!(machine.plugged_blocks(), 0);
}

#[test]
fn states_of_blocks_are_told() {
    let mut machine = machine();
    machine.handle.request(USABLE * BLOCK_SIZE);
    machine.ask(PLUG, address(10), 70);
    assert_eq!(machine.ask(STATE, address(10), 70), (ACK, 0));
    assert_eq!(machine.ask(STATE, address(0), 10), (ACK, 1));
    assert_eq!(machine.ask(STATE, address(9), 2), (ACK, 2));
}

#[test]
fn what_is_no_block_is_refused() {
    let mut machine = machine();
    machine.handle.request(USABLE * BLOCK_SIZE);
    for kind in [PLUG, UNPLUG, STATE] {
        for (at, blocks) in [
            (address(0), 0),
            (address(0) + 4096, 1),
            (address(0) - BLOCK_SIZE, 2),
            (address(USABLE), 1),
            (address(0), u16::MAX),
            (0, 1),
            (u64::MAX, 1),
            (u64::MAX - BLOCK_SIZE + 1, u16::MAX),
        ] {
            assert_eq!(machine.ask(kind, at, blocks).0, ERROR, "{kind} {at:#x}");
        }
    }
    assert_eq!(machine.ask(4, address(0), 1).0, ERROR);
    let short = [Buffer::readable(DATA, 23), Buffer::writable(ANSWER, 10)];
    assert_eq!(machine.send(&short).0, ERROR);
    assert_eq!(machine.plugged_blocks(), 0);
}

#[test]
fn a_request_without_room_for_an_answer_needs_a_reset() {
    let mut machine = machine();
    let short = [Buffer::readable(DATA, 24), Buffer::writable(ANSWER, 9)];
    machine.queue.add(0, &short);
    machine.queue.kick();
    let interrupts = &machine.interrupts;
    let reset = interrupts.wait_for(|| interrupts.reset_is_needed().then_some(()));
    assert!(reset.is_some());
    assert_eq!(machine.device.deactivate().len(), 1);
}

/// Pages of the host behind `blocks` from the first on.
fn resident(memory: &GuestMemoryMmap, first: u64, blocks: u64) -> usize {
    (first..first + blocks)
        .map(|block| {
            let host = memory
                .get_host_address(GuestAddress(address(block)))
                .unwrap();
            let pages = usize::try_from(BLOCK_SIZE / 4096).unwrap();
            let mut there = vec![0_u8; pages];
            super::region::testing::mincore(host, &mut there);
            there.iter().filter(|page| **page & 1 == 1).count()
        })
        .sum()
}

#[test]
fn memory_of_the_host_comes_with_the_first_write_and_goes_with_the_block() {
    let mut machine = machine();
    machine.handle.request(USABLE * BLOCK_SIZE);
    assert_eq!(machine.ask(PLUG, address(20), 20).0, ACK);
    assert_eq!(resident(&machine.memory, 0, USABLE), 0);
    // Over the end of the first extent.
    for block in 25..35 {
        let at = GuestAddress(address(block));
        machine.memory.write_slice(&[7; 4096], at).unwrap();
    }
    assert!(resident(&machine.memory, 25, 10) >= 10);
    assert_eq!(machine.ask(UNPLUG, address(27), 6).0, ACK);
    assert_eq!(resident(&machine.memory, 27, 6), 0);
    let read = |block| -> u8 {
        let at = GuestAddress(address(block));
        machine.memory.read_obj(at).unwrap()
    };
    assert_eq!([26, 27, 32, 33].map(read), [7, 0, 0, 7]);
    assert_eq!(machine.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!(resident(&machine.memory, 0, 27), 0);
}

#[test]
fn a_driver_that_comes_late_hears_of_what_it_missed_and_plugged_blocks_outlive_it() {
    let (memory, mut device, handle) = device();
    handle.request(2 * BLOCK_SIZE);
    let queue = DriverQueue::new(&memory, 0, QUEUE_SIZES[0], true);
    let interrupts = Arc::new(Interrupts::default());
    let activation = || activation(&memory, &[&queue], &interrupts);
    device.activate(activation()).unwrap();
    assert_eq!(interrupts.count(), 1);
    handle.request(3 * BLOCK_SIZE);
    assert_eq!(interrupts.count(), 2);
    handle.ask_again();
    assert_eq!(interrupts.count(), 3, "of the same request");
    let mut machine = Machine {
        memory: memory.clone(),
        queue,
        interrupts: Arc::clone(&interrupts),
        device,
        handle,
    };
    assert_eq!(machine.ask(PLUG, address(1), 3).0, ACK);
    machine.device.deactivate();
    machine.device.reset();
    assert_eq!(machine.plugged_blocks(), 3);
    let state = machine.device.state();
    assert_eq!(state["plugged"], serde_json::json!([0b1110, 0]));
    assert_eq!(state["requested_bytes"], 3 * BLOCK_SIZE);
    let queue = &machine.queue;
    let again = super::super::testing::activation(&memory, &[queue], &interrupts);
    let told = interrupts.count();
    machine.device.activate(again).unwrap();
    assert_eq!(interrupts.count(), told, "nothing was missed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_chain_is_survived((descriptors, heads) in any_chains(0x4000, DATA)) {
        let mut machine = machine();
        machine.handle.request(USABLE * BLOCK_SIZE);
        offer_anything(&mut machine.queue, &descriptors, &heads);
        machine.queue.settle(&machine.interrupts);
        prop_assert_eq!(machine.device.deactivate().len(), 1);
    }

    #[test]
    fn any_requests_keep_the_count_right_and_below_what_is_asked_for(
        requests in prop::collection::vec(
            (0_u16..5, prop_oneof![0_u64..USABLE + 2, any::<u64>()], 0_u16..40, 0_u64..=USABLE),
            1..40,
        ),
    ) {
        let (_memory, device, handle) = device();
        let mut model = vec![false; usize::try_from(USABLE).unwrap()];
        for (kind, block, count, asked) in requests {
            handle.request(asked * BLOCK_SIZE);
            let blocks = request::Blocks {
                address: START.wrapping_add(block.wrapping_mul(BLOCK_SIZE)),
                count,
            };
            let request = match kind {
                0 | 4 => Request::Plug(blocks),
                1 => Request::Unplug(blocks),
                2 => Request::UnplugAll,
                _ => Request::State(blocks),
            };
            let plugged = handle.plugged();
            let answer = handle.region().serve(request);
            let first = usize::try_from(blocks.address.wrapping_sub(START) / BLOCK_SIZE).unwrap();
            let range = first..first.saturating_add(usize::from(count));
            match (request, answer) {
                (Request::Plug(_), Answer::Done) => {
                    prop_assert!(handle.plugged() <= asked * BLOCK_SIZE);
                    model[range].fill(true);
                }
                (Request::Unplug(_), Answer::Done) => model[range].fill(false),
                (Request::UnplugAll, _) => model.fill(false),
                _ => prop_assert_eq!(handle.plugged(), plugged),
            }
            let count = model.iter().filter(|plugged| **plugged).count() as u64;
            prop_assert_eq!(handle.plugged(), count * BLOCK_SIZE);
        }
        drop(device);
    }
}

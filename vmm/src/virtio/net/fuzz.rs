//! What a target in `fuzz/` calls, and a bounded test with every run: a driver that is hostile.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use super::{HEADER_LEN, Nic, PACKET_QUEUE_SIZE, Tap};
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{
    AnyDescriptor, DriverQueue, Interrupts, activation, guest_memory, offer_anything,
};

const MEMORY: usize = 1 << 20;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Bytes of a descriptor in a script: address, length, flags and next.
const DESCRIPTOR_LEN: usize = 12;

/// Gives an interface what `script` says: the features of its driver, then descriptors for both of
/// its queues, every one of them offered as a head. A packet comes from the host meanwhile. Whatever
/// is said, the device stops when it is told to, and gives its queues back.
pub fn descriptors(script: &[u8]) {
    let Some((features, descriptors)) = script.split_first_chunk::<8>() else {
        return;
    };
    let (ours, host) = UnixDatagram::pair().expect("a pair of sockets");
    let tap = Tap::socket(ours.into()).expect("a socket takes its place");
    let mut nic = Nic::on_taps("eth0".into(), MAC, 1500, vec![tap]).expect("an interface");
    let memory = guest_memory(MEMORY);
    let queue = |at| DriverQueue::new(&memory, at, PACKET_QUEUE_SIZE, true);
    let (mut rx, mut tx) = (queue(0), queue(DriverQueue::LEN));
    let interrupts = Arc::new(Interrupts::default());
    let mut activation = activation(&memory, &[&rx, &tx], &interrupts);
    activation.features = u64::from_le_bytes(*features) & nic.features();
    nic.activate(activation).expect("both queues are there");

    let most = usize::from(PACKET_QUEUE_SIZE);
    let descriptors: Vec<AnyDescriptor> = descriptors
        .chunks_exact(DESCRIPTOR_LEN)
        .map(descriptor)
        .take(most)
        .collect();
    let heads: Vec<u16> = (0..).take(descriptors.len()).collect();
    let _full = host.send(&[0; HEADER_LEN + 60]);
    for queue in [&mut tx, &mut rx] {
        offer_anything(queue, &descriptors, &heads);
        queue.settle(&interrupts);
    }
    assert_eq!(nic.deactivate().len(), 2);
}

/// Addresses are mostly in the guest's memory, where what is wrong is not found at once.
fn descriptor(bytes: &[u8]) -> AnyDescriptor {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], 0]);
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let high = u64::from(bytes[3] & bytes[7] & bytes[11]) << 56;
    (u64::from(number(0)) | high, number(4), half(8), half(10))
}

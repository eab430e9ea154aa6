//! Guests that do not follow the rules.

use std::io::Read;
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::guest::*;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Buffer, offer_anything};
use crate::virtio::vsock::QUEUE_SIZES;
use crate::virtio::vsock::to_host::BUFFER_LEN;

#[test]
fn packets_for_unknown_connections_are_reset() {
    let mut guest = Guest::new();
    for op in [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 99] {
        guest.send(&Wire::new(op, 8, 9));
        let reset = guest.expect(RST);
        assert_eq!((reset.port, reset.peer, reset.kind), (8, 9, 1));
    }
    guest.send(&Wire::new(RST, 8, 9));
    guest.expect_silence();
}

#[test]
fn a_socket_type_that_is_not_known_is_reset() {
    let mut guest = Guest::new();
    let _listener = guest.listen(9);
    for kind in [0, 2, 3, u16::MAX] {
        let mut packet = Wire::new(REQUEST, 8, 9);
        packet.kind = kind;
        guest.send(&packet);
        assert_eq!(guest.expect(RST).kind, kind);
    }
    guest.expect_connections(0);
}

#[test]
fn packets_of_or_for_others_are_dropped() {
    let mut guest = Guest::new();
    let _listener = guest.listen(9);
    for (src_cid, dst_cid) in [(2, 2), (4, 2), (u64::MAX, 2), (3, 3), (3, 1), (3, u64::MAX)] {
        let mut packet = Wire::new(REQUEST, 8, 9);
        (packet.src_cid, packet.dst_cid) = (src_cid, dst_cid);
        guest.send(&packet);
    }
    guest.expect_silence();
    guest.expect_connections(0);
}

#[test]
fn more_than_the_credit_resets_the_connection_and_keeps_what_was_in_it() {
    let mut guest = Guest::new();
    let (mut stream, socket) = guest.open(1);
    // Without looking at the credit; the program does not read.
    let mut sent = 0;
    let reset = loop {
        guest.send(&Wire::new(RW, 1, socket.peer).with_payload(&[3; 60_000]));
        sent += 60_000;
        if let Some(packet) = guest.try_receive()
            && packet.op == RST
        {
            break packet;
        }
        assert!(sent < 64 * BUFFER_LEN, "an overrun must be noticed");
    };
    assert_eq!(reset.peer, socket.peer);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes.len() <= BUFFER_LEN + (1 << 20));
    guest.expect_connections(0);
}

#[test]
fn a_packet_larger_than_any_credit_resets_the_connection() {
    let mut guest = Guest::new();
    let (_stream, socket) = guest.open(1);
    // The same memory again and again: the length is the guest's claim, and true.
    let buffers: Vec<_> = std::iter::once(Buffer::readable(0x80_0000, 44))
        .chain((0..5).map(|_| Buffer::readable(0x80_1000, 60_000)))
        .collect();
    let mut packet = Wire::new(RW, 1, socket.peer);
    packet.len = 300_000;
    let header = GuestAddress(0x80_0000);
    guest.memory.write_slice(&packet.header(), header).unwrap();
    guest.tx.add(100, &buffers);
    guest.tx.kick();
    guest.expect(RST);
    guest.expect_connections(0);
}

#[test]
fn credit_that_makes_no_sense_is_no_credit() {
    let mut guest = Guest::new();
    let (stream, socket) = guest.open(1);
    for (buf_alloc, fwd_cnt) in [(0, 0), (100, 1_000_000), (u32::MAX - 1, 1), (10, 5)] {
        let mut update = Wire::new(CREDIT_UPDATE, 1, socket.peer);
        (update.buf_alloc, update.fwd_cnt) = (buf_alloc, fwd_cnt);
        guest.send(&update);
    }
    let mut sender = stream;
    std::io::Write::write_all(&mut sender, b"stuck").unwrap();
    // Each change of mind may be answered with one request for credit.
    while let Some(packet) = guest.try_receive() {
        assert_eq!(packet.op, CREDIT_REQUEST);
    }
    let mut update = Wire::new(CREDIT_UPDATE, 1, socket.peer);
    update.buf_alloc = 3;
    guest.send(&update);
    while guest.receive().op != RW {}
}

#[test]
fn a_request_for_a_connection_that_is_there_resets_it() {
    let mut guest = Guest::new();
    let listener = guest.listen(9);
    guest.send(&Wire::new(REQUEST, 8, 9));
    guest.expect(RESPONSE);
    let (mut stream, _) = listener.accept().unwrap();
    guest.send(&Wire::new(REQUEST, 8, 9));
    guest.expect(RST);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    guest.expect_connections(0);
    guest.send(&Wire::new(REQUEST, 8, 9));
    guest.expect(RESPONSE);
}

#[test]
fn operations_out_of_place_reset_the_connection() {
    for op in [0, RESPONSE, REQUEST, 8, u16::MAX] {
        let mut guest = Guest::new();
        let (mut stream, socket) = guest.open(1);
        guest.send(&Wire::new(op, 1, socket.peer));
        guest.expect(RST);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        guest.expect_connections(0);
    }
}

#[test]
fn data_before_the_response_resets_the_connection() {
    let mut guest = Guest::new();
    let mut stream = guest.program();
    std::io::Write::write_all(&mut stream, b"CONNECT 1\n").unwrap();
    let request = guest.expect(REQUEST);
    guest.send(&Wire::new(RW, 1, request.peer).with_payload(b"x"));
    guest.expect(RST);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn data_after_the_last_byte_resets_the_connection() {
    let mut guest = Guest::new();
    let (_stream, mut socket) = guest.open(1);
    let mut close = socket.packet(SHUTDOWN);
    close.flags = SEND;
    guest.send(&close);
    guest.send(&socket.data(b"more"));
    guest.expect(RST);
    guest.expect_connections(0);
}

#[test]
fn a_flood_that_takes_no_answers_is_not_looked_at() {
    let mut guest = Guest::without_buffers();
    // Each would be owed a reset. The device stops to take them: the queue fills up.
    let mut sent = 0;
    while guest.can_send() && sent < 10_000 {
        guest.send(&Wire::new(RW, sent, 9));
        sent += 1;
        std::thread::sleep(Duration::from_micros(100));
    }
    assert!(sent < 1_000, "{sent} packets were taken");
    guest.offer_buffers();
    for _ in 0..sent {
        guest.expect(RST);
    }
    guest.send(&Wire::new(RW, 1, 9));
    guest.expect(RST);
}

#[test]
fn a_packet_that_is_none_needs_a_reset() {
    // Shorter than a header; longer than its chain; nothing readable at all.
    let short = |guest: &mut Guest| guest.tx.add(0, &[Buffer::readable(0x80_0000, 43)]);
    let long = |guest: &mut Guest| {
        let mut packet = Wire::new(RW, 1, 2);
        packet.len = 17;
        let header = GuestAddress(0x80_0000);
        guest.memory.write_slice(&packet.header(), header).unwrap();
        guest.tx.add(0, &[Buffer::readable(0x80_0000, 60)]);
    };
    let writable = |guest: &mut Guest| guest.tx.add(0, &[Buffer::writable(0x80_0000, 100)]);
    for make in [short, long, writable] as [fn(&mut Guest); 3] {
        let mut guest = Guest::new();
        make(&mut guest);
        guest.tx.kick();
        assert!(guest.reset_is_needed());
        assert_eq!(guest.vsock.deactivate().len(), 3);
    }
}

#[test]
fn a_buffer_without_room_needs_a_reset() {
    for buffer in [
        Buffer::writable(0x80_0000, 44),
        Buffer::readable(0x80_0000, 4096),
    ] {
        let mut guest = Guest::without_buffers();
        guest.rx.add(0, &[buffer]);
        guest.rx.kick();
        guest.send(&Wire::new(RW, 1, 9));
        assert!(guest.reset_is_needed());
    }
}

#[test]
fn a_broken_device_works_again_after_a_reset() {
    let mut guest = Guest::new();
    let (mut stream, _socket) = guest.open(1);
    guest.tx.set_available(60_000);
    guest.tx.kick();
    assert!(guest.reset_is_needed());
    guest.vsock.deactivate();
    guest.vsock.reset();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    guest.expect_connections(0);
}

/// A packet with any of the fields that matter, known connections preferred.
fn any_packet() -> impl Strategy<Value = Wire> {
    (
        prop_oneof![8 => Just((3, 2)), 1 => any::<(u64, u64)>()],
        prop_oneof![Just(1_u32), Just(2), 0_u32..4, any::<u32>()],
        prop_oneof![4 => Just(1_u32 << 30), 2 => Just(9_u32), 1 => any::<u32>()],
        prop_oneof![9 => Just(1_u16), 1 => any::<u16>()],
        prop_oneof![9 => 0_u16..9, 1 => any::<u16>()],
        prop_oneof![0_u32..4, any::<u32>()],
        prop_oneof![Just(GUEST_BUFFER), 0_u32..100, any::<u32>()],
        prop_oneof![0_u32..100, any::<u32>()],
        0_usize..3000,
    )
        .prop_map(
            |((src_cid, dst_cid), port, peer, kind, op, flags, buf_alloc, fwd_cnt, len)| Wire {
                src_cid,
                dst_cid,
                port,
                peer,
                len: u32::try_from(len).unwrap(),
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
                payload: vec![5; len],
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any packets, with a program on either kind of connection: the device lives, no packet of it
    /// is malformed, and it never holds more connections than there can be.
    #[test]
    fn any_packets_are_survived(packets in prop::collection::vec(any_packet(), 1..60)) {
        let mut guest = Guest::new();
        let listener = guest.listen(9);
        listener.set_nonblocking(true).unwrap();
        let mut programs = Vec::new();
        let mut program = guest.program();
        std::io::Write::write_all(&mut program, b"CONNECT 1\nsome bytes").unwrap();
        guest.expect(REQUEST);
        for packet in &packets {
            guest.send(packet);
            programs.extend(listener.accept());
            while guest.try_receive().is_some() {}
        }
        prop_assert_eq!(guest.vsock.deactivate().len(), 3);
        prop_assert!(!guest.interrupts.reset_is_needed());
        guest.vsock.reset();
        prop_assert_eq!(guest.handle.connections(), 0);
    }

    /// Any descriptors on the queues from and to the guest.
    #[test]
    fn any_chains_are_survived(
        to_device in any::<bool>(),
        headers in prop::collection::vec(any_packet(), 2),
        descriptors in prop::collection::vec(
            (
                prop_oneof![0x80_0000_u64..0x80_0040, 0x80_0000_u64..0x80_9000, any::<u64>()],
                prop_oneof![Just(44_u32), 0_u32..5000, any::<u32>()],
                0_u16..8,
                prop_oneof![0_u16..16, any::<u16>()],
            ),
            1..16,
        ),
        heads in prop::collection::vec(prop_oneof![9 => 0_u16..16, 1 => any::<u16>()], 1..20),
    ) {
        let mut guest = Guest::without_buffers();
        for (at, packet) in [0x80_0000, 0x80_0030].into_iter().zip(&headers) {
            guest.memory.write_slice(&packet.header(), GuestAddress(at)).unwrap();
        }
        if to_device {
            offer_anything(&mut guest.tx, &descriptors, &heads);
        } else {
            offer_anything(&mut guest.rx, &descriptors, &heads);
            for port in 0..30 {
                guest.send(&Wire::new(RW, port, 9));
            }
        }
        let settled = if to_device { &guest.tx } else { &guest.rx };
        settled.settle(&guest.interrupts);
        prop_assert_eq!(guest.vsock.deactivate().len(), 3);
    }
}

#[test]
fn the_queues_are_as_large_as_announced() {
    let guest = Guest::new();
    assert_eq!(guest.vsock.queue_sizes(), QUEUE_SIZES);
    assert_eq!(guest.vsock.config(), 3_u64.to_le_bytes());
}

//! Much data, and peers that do not take it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::guest::*;
use crate::virtio::testing::PATIENCE;
use crate::virtio::vsock::to_host::BUFFER_LEN;

const MUCH: usize = 100 * 1000 * 1000;

/// Both ends make the same bytes, so that every one of them can be compared.
struct Pattern {
    state: u64,
    word: [u8; 8],
    left: usize,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        Self {
            state: seed,
            word: [0; 8],
            left: 0,
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            if self.left == 0 {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.word = self.state.to_le_bytes();
                self.left = 8;
            }
            self.left -= 1;
            *byte = self.word[self.left];
        }
    }

    fn check(&mut self, received: &[u8]) {
        let mut expected = vec![0; received.len()];
        self.fill(&mut expected);
        assert!(expected == received, "bytes were changed on the way");
    }
}

fn writer(mut stream: UnixStream, seed: u64, total: usize) -> JoinHandle<()> {
    let run = move || {
        let (mut pattern, mut left) = (Pattern::new(seed), total);
        let mut buffer = vec![0; 100_003];
        while left > 0 {
            let len = left.min(buffer.len());
            pattern.fill(&mut buffer[..len]);
            stream.write_all(&buffer[..len]).unwrap();
            left -= len;
        }
    };
    Builder::new().name("writer".into()).spawn(run).unwrap()
}

fn reader(mut stream: UnixStream, seed: u64, total: usize, pause: Duration) -> JoinHandle<()> {
    let run = move || {
        let (mut pattern, mut left) = (Pattern::new(seed), total);
        let mut buffer = vec![0; 70_001];
        while left > 0 {
            std::thread::sleep(pause);
            let len = stream.read(&mut buffer).unwrap();
            assert!(len > 0, "the stream ended {left} bytes too early");
            pattern.check(&buffer[..len]);
            left -= len;
        }
    };
    Builder::new().name("reader".into()).spawn(run).unwrap()
}

/// The guest sends and receives `total` bytes on one connection, by the credit rules.
fn both_ways(guest: &mut Guest, socket: &mut Socket, total: usize) {
    let (mut outgoing, mut incoming) = (Pattern::new(11), Pattern::new(22));
    let (mut to_send, mut to_receive) = (total, total);
    let mut buffer = vec![0; 64 * 1024];
    let start = Instant::now();
    while to_send > 0 || to_receive > 0 {
        let mut idle = true;
        while let Some(packet) = guest.try_receive() {
            idle = false;
            match packet.op {
                RW => {
                    incoming.check(&packet.payload);
                    to_receive -= packet.payload.len();
                    if socket.take(&packet) {
                        let update = socket.packet(CREDIT_UPDATE);
                        guest.send(&update);
                    }
                }
                CREDIT_UPDATE => socket.update(&packet),
                CREDIT_REQUEST => {
                    let update = socket.packet(CREDIT_UPDATE);
                    guest.send(&update);
                }
                op => panic!("operation {op}"),
            }
        }
        let len = to_send.min(socket.room() as usize).min(buffer.len());
        if len > 0 && guest.can_send() {
            idle = false;
            outgoing.fill(&mut buffer[..len]);
            to_send -= len;
            guest.send(&socket.data(&buffer[..len]));
        }
        if idle {
            assert!(
                start.elapsed() < PATIENCE * 6,
                "{to_send} and {to_receive} left"
            );
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_hundred_megabytes_go_both_ways_at_once() {
    let mut guest = Guest::new();
    let (stream, mut socket) = guest.open(1);
    let write = writer(stream.try_clone().unwrap(), 22, MUCH);
    let read = reader(stream.try_clone().unwrap(), 11, MUCH, Duration::ZERO);
    both_ways(&mut guest, &mut socket, MUCH);
    write.join().unwrap();
    read.join().unwrap();
    guest.expect_connections(1);
}

#[test]
fn a_slow_program_gets_every_byte() {
    let mut guest = Guest::new();
    let (stream, mut socket) = guest.open(1);
    let total = 8 << 20;
    let write = writer(stream.try_clone().unwrap(), 22, total);
    let pause = Duration::from_millis(2);
    let read = reader(stream.try_clone().unwrap(), 11, total, pause);
    both_ways(&mut guest, &mut socket, total);
    write.join().unwrap();
    read.join().unwrap();
}

#[test]
fn a_program_that_does_not_read_holds_the_guest_back() {
    let mut guest = Guest::new();
    let (stream, mut socket) = guest.open(1);
    let mut sent = 0;
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(300) {
        while let Some(packet) = guest.try_receive() {
            assert_eq!(packet.op, CREDIT_UPDATE);
            socket.update(&packet);
        }
        let len = (socket.room() as usize).min(10_000);
        if len > 0 {
            guest.send(&socket.data(&vec![1; len]));
            sent += len;
            quiet = Instant::now();
        }
    }
    // The device's buffer is full and the rest is in the kernel's socket, whose limit is its own.
    assert_eq!(socket.room(), 0);
    assert!(
        (BUFFER_LEN..BUFFER_LEN + (1 << 20)).contains(&sent),
        "{sent}"
    );
    assert_eq!(socket.sent as usize, sent);
    // Another connection is not held up.
    let (mut other, mut second) = guest.open(2);
    guest.send(&second.data(b"fine"));
    let mut bytes = [0; 4];
    other.read_exact(&mut bytes).unwrap();
    // Everything is still there.
    let read = Builder::new().name("reader".into()).spawn(move || {
        let mut stream = stream;
        let mut bytes = vec![0; sent];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 1));
    });
    read.unwrap().join().unwrap();
    let interrupts = Arc::clone(&guest.interrupts);
    let told = interrupts.wait_for(|| {
        let packet = guest.try_receive()?;
        socket.update(&packet);
        (socket.room() > 0).then_some(())
    });
    assert!(told.is_some(), "the guest must learn that there is room");
}

/// Writes until nothing more is taken, and returns how much was.
fn stuff(stream: &mut UnixStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(300) {
        match stream.write(&[2; 10_000]) {
            Ok(len) => {
                written += len;
                quiet = Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    written
}

#[test]
fn a_guest_that_does_not_read_holds_the_program_back() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    let program = Builder::new()
        .name("program".into())
        .spawn(move || (stuff(&mut stream), stream))
        .unwrap();
    // The guest takes packets and gives no credit for them.
    let mut received = 0;
    while received < GUEST_BUFFER {
        received += guest.expect(RW).len;
    }
    guest.expect(CREDIT_REQUEST);
    guest.expect_silence();
    let (written, _stream) = program.join().unwrap();
    assert_eq!(received, GUEST_BUFFER);
    let taken = usize::try_from(received).unwrap();
    assert!(written < taken + (1 << 20), "{written} were taken");
    // It goes on where it stopped.
    socket.received = received;
    guest.send(&socket.packet(CREDIT_UPDATE));
    guest.expect(RW);
}

#[test]
fn a_guest_without_buffers_holds_the_program_back() {
    let mut guest = Guest::new();
    let (mut stream, _socket) = guest.open(1);
    let program = Builder::new().name("program".into()).spawn(move || {
        // The driver has 128 buffers, and takes none back.
        (stuff(&mut stream), stream)
    });
    let (written, _stream) = program.unwrap().join().unwrap();
    assert!(written < 2 << 20, "{written} were taken");
    assert_eq!(guest.expect(RW).payload[0], 2);
}

#[test]
fn a_buffer_that_nobody_needs_any_more_is_used_for_another_packet() {
    let mut guest = Guest::without_buffers();
    guest.gives_back = false;
    let buffers = |guest: &mut Guest, indices: std::ops::Range<u16>| {
        indices.for_each(|index| guest.offer_buffer(index));
        guest.rx.kick();
    };
    buffers(&mut guest, 0..1);
    let (mut stream, socket) = guest.open(1);
    // Bytes wait for a buffer; their connection ends before there is one.
    stream.write_all(b"waiting").unwrap();
    guest.expect_silence();
    guest.send(&Wire::new(RST, 1, socket.peer));
    guest.expect_connections(0);
    buffers(&mut guest, 1..2);
    guest.expect_silence();
    guest.send(&Wire::new(RW, 5, 6));
    guest.expect(RST);
}

#[test]
fn many_small_packets_arrive_in_order() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    let count = 20_000_u32;
    let read = Builder::new().name("reader".into()).spawn(move || {
        for expected in 0..count {
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), expected);
        }
    });
    for number in 0..count {
        while socket.room() < 4 {
            let packet = guest.receive();
            socket.update(&packet);
        }
        guest.send(&socket.data(&number.to_le_bytes()));
    }
    read.unwrap().join().unwrap();
}

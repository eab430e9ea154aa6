//! The device between a guest's driver and programs of the host.

mod guest;
mod hostile;
mod transfer;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread::Builder;
use std::time::{Duration, Instant};

use self::guest::*;
use super::*;
use crate::virtio::testing::PATIENCE;

#[test]
fn a_program_and_the_guest_exchange_bytes() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1024);
    guest.expect_connections(1);
    stream.write_all(b"ping").unwrap();
    let packet = guest.expect(RW);
    assert_eq!(packet.payload, b"ping");
    socket.take(&packet);
    guest.send(&socket.data(b"pong"));
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn a_port_where_nobody_listens_closes_the_program() {
    let mut guest = Guest::new();
    let mut stream = guest.program();
    stream.write_all(b"CONNECT 9\n").unwrap();
    let request = guest.expect(REQUEST);
    guest.send(&Wire::new(RST, request.port, request.peer));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty());
    guest.expect_connections(0);
}

#[test]
fn a_line_that_is_none_closes_the_program() {
    let guest = Guest::new();
    let mut stream = guest.program();
    stream.write_all(b"HELLO\n").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    guest.expect_connections(0);
}

#[test]
fn a_program_that_says_nothing_is_closed_in_time() {
    let guest = Guest::new();
    let mut stream = guest.program();
    stream.write_all(b"CONN").unwrap();
    let start = Instant::now();
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    let took = start.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(8));
    guest.expect_connections(0);
}

#[test]
fn bytes_behind_the_line_are_the_connections() {
    let mut guest = Guest::new();
    let mut stream = guest.program();
    stream.write_all(b"CONNECT 5\nearly").unwrap();
    let request = guest.expect(REQUEST);
    guest.send(&Wire::new(RESPONSE, 5, request.peer));
    assert_eq!(guest.expect(RW).payload, b"early");
    assert_eq!(read_line(&mut stream), format!("OK {}\n", request.peer));
}

#[test]
fn the_guest_reaches_a_program_that_listens() {
    let mut guest = Guest::new();
    let listener = guest.listen(7000);
    guest.send(&Wire::new(REQUEST, 40, 7000));
    let response = guest.expect(RESPONSE);
    assert_eq!((response.port, response.peer), (40, 7000));
    let (mut stream, _) = listener.accept().unwrap();
    let mut socket = Socket::new(40, 7000);
    socket.update(&response);
    guest.send(&socket.data(b"hello"));
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    stream.write_all(b"there").unwrap();
    assert_eq!(guest.expect(RW).payload, b"there");
}

#[test]
fn the_guest_is_refused_where_nobody_listens() {
    let mut guest = Guest::new();
    guest.send(&Wire::new(REQUEST, 40, 7000));
    let reset = guest.expect(RST);
    assert_eq!((reset.port, reset.peer), (40, 7000));
    // A socket file without a listener, and a file that is no socket.
    drop(guest.listen(7001));
    std::fs::write(guest.dir.path().join("vsock.sock_7002"), "").unwrap();
    for port in [7001, 7002] {
        guest.send(&Wire::new(REQUEST, 40, port));
        guest.expect(RST);
    }
    guest.expect_connections(0);
}

#[test]
fn a_handle_opens_a_connection() {
    let mut guest = Guest::new();
    let handle = guest.handle.clone();
    let opened = Builder::new()
        .name("handle".into())
        .spawn(move || handle.connect(1025, PATIENCE))
        .unwrap();
    let request = guest.expect(REQUEST);
    assert_eq!(request.port, 1025);
    guest.send(&Wire::new(RESPONSE, 1025, request.peer));
    let mut stream = opened.join().unwrap().unwrap();
    stream.write_all(b"x").unwrap();
    assert_eq!(guest.expect(RW).payload, b"x");
}

#[test]
fn a_handle_learns_that_the_guest_refuses_or_is_silent() {
    let mut guest = Guest::new();
    let handle = guest.handle.clone();
    let silent = handle.connect(1, Duration::from_millis(10)).unwrap_err();
    assert!(matches!(silent, ConnectError::TimedOut(1)));
    guest.expect(REQUEST);
    let refused = Builder::new()
        .name("handle".into())
        .spawn(move || handle.connect(2, PATIENCE))
        .unwrap();
    let request = guest.expect(REQUEST);
    guest.send(&Wire::new(RST, 2, request.peer));
    let error = refused.join().unwrap().unwrap_err();
    assert!(matches!(error, ConnectError::Refused(2)));
    let handle = guest.handle.clone();
    drop(guest);
    let gone = handle.connect(3, PATIENCE).unwrap_err();
    assert!(matches!(gone, ConnectError::Gone));
}

#[test]
fn a_guest_that_never_answers_is_given_up() {
    let mut guest = Guest::new();
    let mut stream = guest.program();
    stream.write_all(b"CONNECT 5\n").unwrap();
    let request = guest.expect(REQUEST);
    let start = Instant::now();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(start.elapsed() > Duration::from_secs(9));
    let reset = guest.expect(RST);
    assert_eq!(reset.peer, request.peer);
    guest.send(&Wire::new(RESPONSE, 5, request.peer));
    guest.expect(RST);
    guest.expect_connections(0);
}

#[test]
fn a_program_that_leaves_shuts_the_guest_down_after_its_last_byte() {
    let mut guest = Guest::new();
    let (mut stream, socket) = guest.open(1);
    stream.write_all(b"bye").unwrap();
    drop(stream);
    let mut bytes = Vec::<u8>::new();
    let mut flags = 0;
    while flags != SEND | RECEIVE {
        let packet = guest.receive();
        match packet.op {
            RW => bytes.extend(&packet.payload),
            SHUTDOWN => flags = packet.flags,
            op => panic!("operation {op}"),
        }
    }
    assert_eq!(bytes, b"bye");
    guest.expect_connections(1);
    guest.send(&Wire::new(RST, 1, socket.peer));
    guest.expect_connections(0);
    guest.expect_silence();
}

#[test]
fn a_guest_that_does_not_confirm_a_close_is_reset() {
    let mut guest = Guest::new();
    let (stream, mut socket) = guest.open(1);
    drop(stream);
    while guest.expect(SHUTDOWN).flags != SEND | RECEIVE {}
    // What was on its way to the program goes nowhere and is no mistake.
    guest.send(&socket.data(b"late"));
    guest.send(&socket.packet(CREDIT_UPDATE));
    guest.expect(RST);
    guest.expect_connections(0);
}

#[test]
fn a_program_that_leaves_is_noticed_by_a_guest_without_room() {
    let mut guest = Guest::new();
    let (stream, mut socket) = guest.open(1);
    let mut no_room = socket.packet(CREDIT_UPDATE);
    no_room.buf_alloc = 0;
    guest.send(&no_room);
    guest.send(&socket.packet(CREDIT_REQUEST));
    // That was answered, so the device knows that there is no room.
    guest.expect(CREDIT_UPDATE);
    guest.send(&no_room);
    drop(stream);
    let flags = loop {
        let packet = guest.receive();
        match packet.op {
            CREDIT_REQUEST => {}
            SHUTDOWN => break packet.flags,
            op => panic!("operation {op}"),
        }
    };
    assert_eq!(flags & RECEIVE, RECEIVE);
}

#[test]
fn a_half_closed_program_still_reads() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(RW).payload, b"question");
    assert_eq!(guest.expect(SHUTDOWN).flags, SEND);
    guest.send(&socket.data(b"answer"));
    let mut close = socket.packet(SHUTDOWN);
    close.flags = SEND | RECEIVE;
    guest.send(&close);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    guest.expect(RST);
    guest.expect_connections(0);
}

#[test]
fn a_half_closed_guest_still_reads() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    guest.send(&socket.data(b"question"));
    let mut close = socket.packet(SHUTDOWN);
    close.flags = SEND;
    guest.send(&close);
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(RW).payload, b"answer");
    drop(stream);
    while guest.expect(SHUTDOWN).flags != SEND | RECEIVE {}
    guest.send(&Wire::new(RST, 1, socket.peer));
    guest.expect_connections(0);
}

#[test]
fn a_guest_that_reads_no_more_fails_the_programs_writes() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    let mut close = socket.packet(SHUTDOWN);
    close.flags = RECEIVE;
    guest.send(&close);
    let deadline = Instant::now() + PATIENCE;
    while stream.write_all(b"x").is_ok() {
        assert!(Instant::now() < deadline, "writes must fail");
    }
    guest.send(&socket.data(b"still here"));
    let mut bytes = [0; 10];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
}

#[test]
fn a_program_that_reads_no_more_is_told_to_the_guest() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    stream.shutdown(Shutdown::Read).unwrap();
    guest.send(&socket.data(b"unwanted"));
    assert_eq!(guest.expect(SHUTDOWN).flags, RECEIVE);
    stream.write_all(b"but hear").unwrap();
    assert_eq!(guest.expect(RW).payload, b"but hear");
}

#[test]
fn bytes_that_a_gone_guest_has_sent_reach_a_slow_program() {
    for op in [RST, SHUTDOWN] {
        let mut guest = Guest::new();
        let (mut stream, mut socket) = guest.open(1);
        let mut sent = 0;
        while socket.room() >= 60_000 {
            guest.send(&socket.data(&[7; 60_000]));
            sent += 60_000;
            while let Some(packet) = guest.try_receive() {
                socket.update(&packet);
            }
        }
        let mut close = socket.packet(op);
        close.flags = SEND | RECEIVE;
        guest.send(&close);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), sent);
        guest.expect_connections(0);
    }
}

#[test]
fn a_reset_of_the_device_delivers_what_was_sent_and_ends_connections() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    let mut sent = 0;
    while socket.room() >= 60_000 {
        guest.send(&socket.data(&[7; 60_000]));
        sent += 60_000;
        while let Some(packet) = guest.try_receive() {
            socket.update(&packet);
        }
    }
    assert_eq!(guest.vsock.deactivate().len(), 3);
    // Only the reset can write what the stopped device still has.
    let reader = Builder::new()
        .name("program".into())
        .spawn(move || {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).map(|_| bytes.len())
        })
        .unwrap();
    guest.vsock.reset();
    assert_eq!(reader.join().unwrap().unwrap(), sent);
    guest.expect_connections(0);
}

#[test]
fn connections_survive_a_pause() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    let queues = guest.vsock.deactivate();
    let indices: Vec<_> = queues.iter().map(|active| active.index).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(
        guest.vsock.state(),
        serde_json::json!({"guest_cid": 3, "connections": 1})
    );
    stream.write_all(b"while away").unwrap();
    let mut late = guest.program();
    late.write_all(b"CONNECT 2\n").unwrap();
    guest.send(&socket.data(b"from before"));
    guest.expect_silence();
    let mut activation = crate::virtio::testing::activation(&guest.memory, &[], &guest.interrupts);
    activation.queues = queues;
    guest.vsock.activate(activation).unwrap();
    let mut operations = [guest.receive(), guest.receive()].map(|packet| packet.op);
    operations.sort_unstable();
    assert_eq!(operations, [REQUEST, RW]);
    let mut bytes = [0; 11];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from before");
}

#[test]
fn what_the_guest_sent_before_a_pause_is_taken() {
    let mut guest = Guest::new();
    let (mut stream, mut socket) = guest.open(1);
    for _ in 0..20 {
        guest.send(&socket.data(b"0123456789"));
    }
    guest.vsock.deactivate();
    let mut bytes = [0; 200];
    stream.set_nonblocking(true).unwrap();
    stream.read_exact(&mut bytes).unwrap();
    let nothing = stream.read(&mut bytes).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_program_may_come_before_the_driver() {
    let mut guest = Guest::new();
    guest.vsock.deactivate();
    let mut stream = guest.program();
    stream.write_all(b"CONNECT 1\n").unwrap();
    guest.rx = crate::virtio::testing::DriverQueue::new(&guest.memory, 0, QUEUE_SIZES[0], true);
    guest.activate();
    guest.offer_buffers();
    guest.expect(REQUEST);
}

#[test]
fn a_credit_request_is_answered() {
    let mut guest = Guest::new();
    let (_stream, mut socket) = guest.open(1);
    guest.send(&socket.packet(CREDIT_REQUEST));
    let update = guest.expect(CREDIT_UPDATE);
    assert_eq!(update.buf_alloc as usize, to_host::BUFFER_LEN);
}

#[test]
fn no_more_connections_than_the_limit() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut programs: Vec<_> = (0..CONNECTIONS_MAX - 1).map(|_| guest.program()).collect();
    guest.expect_connections(u32::try_from(CONNECTIONS_MAX - 1).unwrap());
    guest.send(&Wire::new(REQUEST, 1, 1));
    guest.expect(RESPONSE);
    let _accepted = listener.accept().unwrap();
    guest.send(&Wire::new(REQUEST, 2, 1));
    guest.expect(RST);
    let mut refused = guest.program();
    assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0);
    let handle = guest.handle.clone();
    let error = handle.connect(1, PATIENCE).unwrap_err();
    assert!(matches!(error, ConnectError::Refused(1)));
    programs.pop();
    guest.expect_connections(u32::try_from(CONNECTIONS_MAX - 1).unwrap());
    guest.send(&Wire::new(REQUEST, 2, 1));
    guest.expect(RESPONSE);
}

#[test]
fn activation_without_a_queue_is_an_error_and_keeps_the_device_usable() {
    let mut guest = Guest::new();
    let mut queues = guest.vsock.deactivate();
    let missing = queues.remove(1);
    let mut activation = crate::virtio::testing::activation(&guest.memory, &[], &guest.interrupts);
    activation.queues = queues;
    assert!(matches!(
        guest.vsock.activate(activation),
        Err(ActivateError::QueueMissing(1))
    ));
    drop(missing);
    guest.vsock.reset();
}

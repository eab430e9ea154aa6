//! Network interfaces from the driver's side. A pair of datagram sockets takes the tap's place where
//! a test is not about the tap itself.

use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::virtio::testing::*;

const MEMORY: usize = 4 << 20;
/// Where the queues are.
const RX: u64 = 0;
const TX: u64 = DriverQueue::LEN;
const CONTROL: u64 = 2 * DriverQueue::LEN;
/// Where packets are.
const DATA: u64 = 0x10_0000;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];

struct Driver {
    memory: GuestMemoryMmap,
    rx: DriverQueue,
    tx: DriverQueue,
    interrupts: Arc<Interrupts>,
    nic: Nic,
    /// The host's side.
    host: UnixDatagram,
}

fn socket_taps(count: usize) -> (Vec<Tap>, Vec<UnixDatagram>) {
    (0..count)
        .map(|_| {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            ours.set_read_timeout(Some(PATIENCE)).unwrap();
            (Tap::socket(theirs.into()).unwrap(), ours)
        })
        .unzip()
}

fn driver(features: u64) -> Driver {
    let (taps, mut hosts) = socket_taps(1);
    let mut nic = Nic::on_taps("eth0".into(), MAC, 1500, taps).unwrap();
    let memory = guest_memory(MEMORY);
    let rx = DriverQueue::new(&memory, RX, PACKET_QUEUE_SIZE, true);
    let tx = DriverQueue::new(&memory, TX, PACKET_QUEUE_SIZE, true);
    let interrupts = Arc::new(Interrupts::default());
    let mut activation = activation(&memory, &[&rx, &tx], &interrupts);
    activation.features = features;
    nic.activate(activation).unwrap();
    Driver {
        memory,
        rx,
        tx,
        interrupts,
        nic,
        host: hosts.remove(0),
    }
}

fn options(taps: Vec<OwnedFd>) -> NicOptions {
    NicOptions {
        name: "eth0".into(),
        mac: MAC,
        mtu: 1500,
        taps,
        to_guest_rate: 0,
        from_guest_rate: 0,
    }
}

fn packet(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| u8::try_from(n * 7 % 251).unwrap())
        .collect()
}

impl Driver {
    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Sends a packet in one buffer, and waits until the device has given it back.
    fn send(&mut self, header: &[u8], packet: &[u8]) {
        let frame = [header, packet].concat();
        self.put(DATA, &frame);
        let len = u32::try_from(frame.len()).unwrap();
        self.send_buffers(&[Buffer::readable(DATA, len)]);
    }

    fn send_buffers(&mut self, buffers: &[Buffer]) {
        self.tx.add(0, buffers);
        self.tx.kick();
        let tx = &mut self.tx;
        let used = self.interrupts.wait_for(|| tx.take_used());
        assert_eq!(used, Some((0, 0)));
    }

    /// The next packet that left the guest, with its header.
    fn sent(&self) -> Vec<u8> {
        let mut frame = vec![0; FRAME_MAX + 1];
        let len = self.host.recv(&mut frame).unwrap();
        frame.truncate(len);
        frame
    }

    fn arrives(&self, packet: &[u8]) {
        self.host.send(&[&PLAIN[..], packet].concat()).unwrap();
    }

    /// Offers receive buffers of these lengths, from `DATA` on, one descriptor each.
    fn offer(&mut self, first: u16, lengths: &[u32]) {
        let mut at = DATA + u64::from(first) * 0x1_0000;
        for (head, len) in (first..).zip(lengths) {
            self.rx.add(head, &[Buffer::writable(at, *len)]);
            at += u64::from(*len);
        }
        self.rx.kick();
    }

    fn received(&mut self) -> (u16, u32) {
        let rx = &mut self.rx;
        self.interrupts
            .wait_for(|| rx.take_used())
            .expect("the interface delivers")
    }

    fn needs_reset(&self) -> bool {
        let reset = || self.interrupts.reset_is_needed().then_some(());
        self.interrupts.wait_for(reset).is_some()
    }
}

#[test]
fn a_packet_of_the_guest_leaves_it_whole() {
    let mut driver = driver(0);
    let packet = packet(1514);
    driver.send(&PLAIN, &packet);
    assert_eq!(driver.sent(), [&PLAIN[..], &packet].concat());
}

#[test]
fn header_and_packet_can_be_cut_anywhere() {
    let mut driver = driver(0);
    let frame = [&PLAIN[..], &packet(1000)].concat();
    driver.put(DATA, &frame);
    let cuts: [&[u32]; 3] = [&[5, 7, 1000], &[12, 1000], &[1, 1, 500, 510]];
    for cuts in cuts {
        let mut at = DATA;
        let mut buffers = Vec::new();
        for len in cuts {
            buffers.push(Buffer::readable(at, *len));
            at += u64::from(*len);
        }
        driver.send_buffers(&buffers);
        assert_eq!(driver.sent(), frame, "{cuts:?}");
    }
}

#[test]
fn a_packet_in_more_pieces_than_a_system_call_takes_leaves_whole() {
    let mut driver = driver(0);
    let frame = [&PLAIN[..], &packet(400)].concat();
    driver.put(DATA, &frame);
    let pieces: Vec<_> = (0..206)
        .map(|n| Buffer::readable(DATA + n * 2, 2))
        .collect();
    driver.send_buffers(&pieces);
    assert_eq!(driver.sent(), frame);
}

#[test]
fn what_is_no_packet_is_dropped_and_its_buffer_returned() {
    let mut driver = driver(feature::CSUM);
    driver.send(&PLAIN[..11], &[]);
    driver.send(&PLAIN, &packet(13));
    driver.send(&PLAIN, &packet(PACKET_MAX + 1));
    // Segmentation that was not negotiated.
    let mut header = PLAIN;
    header[..6].copy_from_slice(&[1, 1, 54, 0, 0, 5]);
    driver.send(&header, &packet(100));
    driver.send(&PLAIN, &packet(PACKET_MAX));
    assert_eq!(driver.sent().len(), FRAME_MAX, "the one that may go");
    assert!(!driver.interrupts.reset_is_needed());
}

#[test]
fn an_arriving_packet_fills_as_many_buffers_as_it_takes() {
    let mut driver = driver(feature::MRG_RXBUF);
    driver.offer(0, &[1500; 64]);
    let packet = packet(4000);
    driver.arrives(&packet);
    assert_eq!(driver.received(), (0, 1500));
    assert_eq!(driver.received(), (1, 1500));
    assert_eq!(driver.received(), (2, 4012 - 3000));
    let frame = driver.get(DATA, 4012);
    assert_eq!(frame[HEADER_LEN..], packet);
    assert_eq!(frame[header::NUM_BUFFERS..HEADER_LEN], [3, 0]);
    // The next one begins in the next buffer.
    driver.arrives(&packet[..60]);
    assert_eq!(driver.received(), (3, 72));
    assert_eq!(driver.get(DATA + 4500 + 12, 60), packet[..60]);
    assert_eq!(driver.get(DATA + 4500 + 10, 2), [1, 0]);
}

#[test]
fn the_largest_packet_arrives() {
    let mut driver = driver(feature::MRG_RXBUF);
    driver.offer(0, &[1536; 64]);
    let packet = packet(PACKET_MAX);
    driver.arrives(&packet);
    let buffers = FRAME_MAX.div_ceil(1536);
    for head in 0..buffers {
        assert_eq!(usize::from(driver.received().0), head);
    }
    assert_eq!(driver.get(DATA + 12, PACKET_MAX), packet);
    assert_eq!(
        driver.get(DATA + 10, 2),
        [u8::try_from(buffers).unwrap(), 0]
    );
}

#[test]
fn a_packet_waits_until_there_are_buffers_enough() {
    let mut driver = driver(feature::MRG_RXBUF);
    let packet = packet(3000);
    driver.arrives(&packet);
    driver.offer(0, &[1000, 1000]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(driver.rx.take_used().is_none());
    driver.offer(2, &[2000]);
    assert_eq!(driver.received(), (0, 1000));
    assert_eq!(driver.received(), (1, 1000));
    assert_eq!(driver.received(), (2, 1012));
    assert_eq!(driver.get(DATA + 12, 1988), packet[..1988]);
    assert_eq!(driver.get(DATA + 0x2_0000, 1012), packet[1988..]);
}

#[test]
fn buffers_in_too_many_pieces_are_filled_all_the_same() {
    let mut driver = driver(feature::MRG_RXBUF);
    let pieces: Vec<_> = (0..200)
        .map(|n| Buffer::writable(DATA + n * 400, 400))
        .collect();
    driver.rx.add(0, &pieces);
    driver.rx.kick();
    let packet = packet(60_000);
    driver.arrives(&packet);
    assert_eq!(driver.received(), (0, 60_012));
    assert_eq!(driver.get(DATA + 12, 60_000), packet);
}

#[test]
fn without_merging_a_packet_has_one_buffer_or_none() {
    let mut driver = driver(0);
    driver.arrives(&packet(1600));
    driver.arrives(&packet(60));
    driver.offer(0, &[1526, 1526]);
    assert_eq!(driver.received(), (0, 72));
    assert_eq!(driver.get(DATA + 12, 60), packet(60));
    assert_eq!(driver.get(DATA + 10, 2), [1, 0]);
}

#[test]
fn many_packets_in_both_directions_all_get_through() {
    let mut driver = driver(feature::MRG_RXBUF);
    for round in 0..200_u16 {
        let len = 60 + usize::from(round);
        driver.send(&PLAIN, &packet(len));
        assert_eq!(driver.sent().len(), HEADER_LEN + len);
        driver.offer(0, &[2048]);
        driver.arrives(&packet(len));
        let expected = u32::try_from(HEADER_LEN + len).unwrap();
        assert_eq!(driver.received(), (0, expected));
    }
}

#[test]
fn a_paused_interface_goes_on_with_the_buffers_that_it_had() {
    let mut driver = driver(feature::MRG_RXBUF);
    driver.offer(0, &[1500; 64]);
    driver.arrives(&packet(60));
    assert_eq!(driver.received(), (0, 72));
    let queues = driver.nic.deactivate();
    assert_eq!(
        queues.iter().map(|queue| queue.index).collect::<Vec<_>>(),
        [0, 1]
    );
    driver.arrives(&packet(61));
    assert!(driver.rx.take_used().is_none());
    let mut activation = activation(&driver.memory, &[], &driver.interrupts);
    activation.features = feature::MRG_RXBUF;
    activation.queues = queues;
    driver.nic.activate(activation).unwrap();
    assert_eq!(driver.received(), (1, 73));
    assert_eq!(driver.get(DATA + 1500 + 12, 61), packet(61));
}

#[test]
fn a_receive_buffer_without_room_for_a_header_needs_a_reset() {
    let mut driver = driver(feature::MRG_RXBUF);
    driver.offer(0, &[11]);
    assert!(driver.needs_reset());
}

#[test]
fn a_chain_that_is_none_needs_a_reset() {
    let end = u64::try_from(MEMORY).unwrap();
    let cases: [&[AnyDescriptor]; 5] = [
        &[(DATA, 64, NEXT, 1), (DATA, 64, NEXT, 1)],
        &[(DATA, 64, NEXT, 60_000)],
        &[(end - 1, 2, 0, 0)],
        &[(u64::MAX, 16, 0, 0)],
        &[(DATA, 15, INDIRECT, 0)],
    ];
    for descriptors in cases {
        for transmit in [false, true] {
            let mut driver = driver(feature::MRG_RXBUF);
            let queue = if transmit {
                &mut driver.tx
            } else {
                &mut driver.rx
            };
            offer_anything(queue, descriptors, &[0]);
            assert!(driver.needs_reset(), "{descriptors:?} {transmit}");
        }
    }
}

#[test]
fn the_driver_chooses_how_many_pairs_it_uses() {
    let (taps, hosts) = socket_taps(2);
    let mut nic = Nic::on_taps("eth0".into(), MAC, 1500, taps).unwrap();
    assert_eq!(nic.queue_sizes().len(), 5);
    assert_ne!(nic.features() & feature::MQ, 0);
    let memory = guest_memory(MEMORY);
    let queue = |at| DriverQueue::new(&memory, at, CONTROL_QUEUE_SIZE, true);
    let others: Vec<_> = [RX, TX, 3 * DriverQueue::LEN, 4 * DriverQueue::LEN]
        .map(queue)
        .into();
    let mut control = queue(CONTROL);
    let interrupts = Arc::new(Interrupts::default());
    let queues: Vec<_> = others.iter().chain([&control]).collect();
    let mut activation = activation(&memory, &queues, &interrupts);
    activation.features = feature::MQ | feature::CTRL_VQ;
    nic.activate(activation).unwrap();

    let mut command = |class, name, pairs: u16| {
        let [low, high] = pairs.to_le_bytes();
        memory
            .write_slice(&[class, name, low, high], GuestAddress(DATA))
            .unwrap();
        let buffers = [Buffer::readable(DATA, 4), Buffer::writable(DATA + 8, 1)];
        control.add(0, &buffers);
        control.kick();
        let used = interrupts.wait_for(|| control.take_used());
        assert_eq!(used, Some((0, 1)));
        memory.read_obj::<u8>(GuestAddress(DATA + 8)).unwrap()
    };
    assert_eq!(command(4, 0, 2), 0);
    assert_eq!(command(4, 0, 0), 1);
    assert_eq!(command(4, 0, 3), 1);
    assert_eq!(command(4, 1, 1), 1);
    assert_eq!(command(0, 0, 1), 1);
    assert_eq!(nic.state()["pairs"], 2);
    assert_eq!(nic.deactivate().len(), 5);
    nic.reset();
    assert_eq!(nic.state()["pairs"], 1);
    drop(hosts);
}

#[test]
fn the_configuration_says_address_pairs_and_mtu() {
    let (taps, _hosts) = socket_taps(1);
    let nic = Nic::on_taps("eth0".into(), MAC, 9000, taps).unwrap();
    let config = nic.config();
    assert_eq!(config[..6], MAC);
    assert_eq!(config[8..10], [1, 0]);
    assert_eq!(config[10..12], 9000_u16.to_le_bytes());
    assert_eq!(nic.features() & (feature::MQ | feature::CTRL_VQ), 0);
}

#[test]
fn an_interface_that_cannot_be_is_refused() {
    let nic = |name: &str, mac, mtu, taps| {
        let (taps, _hosts) = socket_taps(taps);
        Nic::on_taps(name.into(), mac, mtu, taps)
    };
    for name in ["", "a b", "a/b", &"x".repeat(16)] {
        assert!(matches!(nic(name, MAC, 1500, 1), Err(NicError::Name(_))));
    }
    for mac in [[0; 6], [1, 0, 0, 0, 0, 0], [0xff; 6]] {
        assert!(matches!(nic("a", mac, 1500, 1), Err(NicError::Mac(_))));
    }
    assert!(matches!(nic("a", MAC, 67, 1), Err(NicError::Mtu(67))));
    for taps in [0, PAIRS_MAX + 1] {
        assert!(matches!(
            nic("a", MAC, 1500, taps),
            Err(NicError::Queues(_))
        ));
    }
    let options = options(vec![std::fs::File::open("/dev/null").unwrap().into()]);
    assert!(matches!(Nic::new(options), Err(NicError::Tap { .. })));
}

#[test]
fn packets_wait_for_their_rate_in_both_directions() {
    let mut driver = driver(feature::MRG_RXBUF);
    let queues = driver.nic.deactivate();
    // The first 100 kB pass at once, then as many in each second.
    let slow = || Limiter::new(800_000);
    driver.nic.limiters = (slow(), slow());
    let mut activation = activation(&driver.memory, &[], &driver.interrupts);
    activation.features = feature::MRG_RXBUF;
    activation.queues = queues;
    let begun = std::time::Instant::now();
    driver.nic.activate(activation).unwrap();
    for _ in 0..100 {
        driver.send(&PLAIN, &packet(1400));
        assert_eq!(driver.sent().len(), HEADER_LEN + 1400);
    }
    let sent = begun.elapsed();
    for _ in 0..100 {
        driver.offer(0, &[2048]);
        driver.arrives(&packet(1400));
        assert_eq!(driver.received(), (0, 1412));
    }
    let received = begun.elapsed() - sent;
    let least = std::time::Duration::from_millis(300);
    assert!(sent > least, "{sent:?}");
    assert!(
        received < std::time::Duration::from_secs(60),
        "{received:?}"
    );
}

/// The kernel's own stack answers through a tap what a guest asks. Needs root.
#[test]
fn a_taps_kernel_answers_the_guest() {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/net/tun").exists() {
        return isopod_tests::skip("needs root and /dev/net/tun");
    }
    let talk = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for count in [1, 2] {
            ask_for_address(count);
        }
    };
    let thread = std::thread::Builder::new().spawn(talk).unwrap();
    thread.join().unwrap();
}

fn ask_for_address(queues: usize) {
    let name = format!("tap{queues}");
    let mut nic = Nic::new(options(Tap::open(&name, queues).unwrap())).unwrap();
    for command in [
        format!("address add 10.{queues}.0.1/24 dev {name}"),
        format!("link set {name} up"),
    ] {
        let ran = std::process::Command::new("ip")
            .args(command.split(' '))
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .status();
        assert!(ran.unwrap().success(), "{command}");
    }
    let memory = guest_memory(MEMORY);
    let queue = |at| DriverQueue::new(&memory, at, PACKET_QUEUE_SIZE, true);
    let (mut rx, mut tx) = (queue(RX), queue(TX));
    let interrupts = Arc::new(Interrupts::default());
    let mut activation = activation(&memory, &[&rx, &tx], &interrupts);
    activation.features = nic.features() & !(feature::MQ | feature::CTRL_VQ);
    nic.activate(activation).unwrap();

    let address = u8::try_from(queues).unwrap();
    let mut request = [0; HEADER_LEN + 42];
    let arp = &mut request[HEADER_LEN..];
    arp[..6].fill(0xff);
    arp[6..12].copy_from_slice(&MAC);
    arp[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp[22..28].copy_from_slice(&MAC);
    arp[28..32].copy_from_slice(&[10, address, 0, 2]);
    arp[38..42].copy_from_slice(&[10, address, 0, 1]);
    memory.write_slice(&request, GuestAddress(DATA)).unwrap();
    let len = u32::try_from(request.len()).unwrap();
    tx.add(0, &[Buffer::readable(DATA, len)]);
    tx.kick();
    // Others may come before the answer: the kernel looks for routers, too.
    for head in 0..64 {
        rx.add(head, &[Buffer::writable(DATA + 0x1000, 2048)]);
        rx.kick();
        let used = interrupts.wait_for(|| rx.take_used()).expect("an answer");
        let mut frame = vec![0; used.1 as usize];
        memory
            .read_slice(&mut frame, GuestAddress(DATA + 0x1000))
            .unwrap();
        let arp = &frame[HEADER_LEN..];
        if arp[..6] == MAC && arp[12..14] == [8, 6] && arp[20..22] == [0, 2] {
            assert_eq!(arp[28..32], [10, address, 0, 1]);
            return;
        }
    }
    panic!("nobody answered");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_script_of_a_driver_is_survived(script in prop::collection::vec(any::<u8>(), 8..200)) {
        fuzz::descriptors(&script);
    }

    /// Whatever the driver does, the interface lives and stops when told.
    #[test]
    fn any_chain_is_survived(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 64), 4),
        descriptors in prop::collection::vec(
            (
                prop_oneof![0_u64..0x8000, DATA..DATA + 256, any::<u64>()],
                prop_oneof![0_u32..64, 0_u32..70_000, any::<u32>()],
                0_u16..8,
                prop_oneof![0_u16..16, any::<u16>()],
            ),
            1..16,
        ),
        heads in prop::collection::vec(prop_oneof![0_u16..16, any::<u16>()], 1..20),
        transmit in any::<bool>(),
        mergeable in any::<bool>(),
    ) {
        let features = if mergeable { !(feature::MQ | feature::CTRL_VQ) } else { 0 };
        let mut driver = driver(features);
        for (frame, at) in frames.iter().zip((DATA..).step_by(64)) {
            driver.put(at, frame);
            driver.arrives(frame);
        }
        let queue = if transmit { &mut driver.tx } else { &mut driver.rx };
        offer_anything(queue, &descriptors, &heads);
        queue.settle(&driver.interrupts);
        prop_assert_eq!(driver.nic.deactivate().len(), 2);
    }
}

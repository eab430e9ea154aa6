//! A guest's driver, and sockets of the guest that follow the credit rules. Knows the wire format
//! from the specification, not from the device.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::virtio::VirtioDevice;
use crate::virtio::testing::{Buffer, DriverQueue, Interrupts, PATIENCE, activation, guest_memory};
use crate::virtio::vsock::{QUEUE_SIZES, Vsock, VsockHandle};

pub(super) const REQUEST: u16 = 1;
pub(super) const RESPONSE: u16 = 2;
pub(super) const RST: u16 = 3;
pub(super) const SHUTDOWN: u16 = 4;
pub(super) const RW: u16 = 5;
pub(super) const CREDIT_UPDATE: u16 = 6;
pub(super) const CREDIT_REQUEST: u16 = 7;

/// SHUTDOWN flags.
pub(super) const RECEIVE: u32 = 1;
pub(super) const SEND: u32 = 2;

/// What the guest's sockets can keep.
pub(super) const GUEST_BUFFER: u32 = 256 * 1024;

const HEADER: usize = 44;
const HEADER_LEN: u32 = 44;
const RX_BASE: u64 = 0x10_0000;
const RX_LEN: u32 = 3776;
const TX_BASE: u64 = 0x20_0000;
const TX_STRIDE: u64 = 0x1_1000;
const TX_SLOTS: u16 = 64;
const MEMORY: usize = 16 << 20;

/// A packet of either side. `port` is the guest's, `peer` the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wire {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) port: u32,
    pub(super) peer: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
    pub(super) payload: Vec<u8>,
}

impl Wire {
    /// A packet of the guest, as it should be.
    pub(super) fn new(op: u16, port: u32, peer: u32) -> Self {
        Self {
            src_cid: 3,
            dst_cid: 2,
            port,
            peer,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: 0,
            payload: Vec::new(),
        }
    }

    pub(super) fn with_payload(mut self, payload: &[u8]) -> Self {
        self.len = u32::try_from(payload.len()).unwrap();
        self.payload = payload.to_vec();
        self
    }

    pub(super) fn header(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.peer.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// A packet of the host.
    fn parse(bytes: &[u8]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let packet = Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            peer: u32_at(16),
            port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            payload: bytes[HEADER..].to_vec(),
        };
        assert_eq!(packet.payload.len(), packet.len as usize);
        assert_eq!((packet.src_cid, packet.dst_cid), (2, 3));
        packet
    }
}

/// A driver and its device.
pub(super) struct Guest {
    pub(super) memory: GuestMemoryMmap,
    pub(super) rx: DriverQueue,
    pub(super) tx: DriverQueue,
    events: DriverQueue,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) vsock: Vsock,
    pub(super) handle: VsockHandle,
    pub(super) dir: TempDir,
    tx_free: Vec<u16>,
    /// Buffers go back to the device when their packets were taken.
    pub(super) gives_back: bool,
}

impl Guest {
    pub(super) fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.offer_buffers();
        guest
    }

    /// A guest that has no room for packets yet.
    pub(super) fn without_buffers() -> Self {
        let memory = guest_memory(MEMORY);
        let queue = |index: usize| {
            let base = index as u64 * DriverQueue::LEN;
            DriverQueue::new(&memory, base, QUEUE_SIZES[index], true)
        };
        let (rx, tx, events) = (queue(0), queue(1), queue(2));
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("vsock.sock")).unwrap();
        let (vsock, handle) = Vsock::new(listener, dir.path()).unwrap();
        let mut guest = Self {
            memory,
            rx,
            tx,
            events,
            interrupts: Arc::new(Interrupts::default()),
            vsock,
            handle,
            dir,
            tx_free: (0..TX_SLOTS).collect(),
            gives_back: true,
        };
        guest.activate();
        guest
    }

    pub(super) fn activate(&mut self) {
        let queues = [&self.rx, &self.tx, &self.events];
        let activation = activation(&self.memory, &queues, &self.interrupts);
        self.vsock.activate(activation).unwrap();
    }

    pub(super) fn offer_buffers(&mut self) {
        for index in 0..QUEUE_SIZES[0] {
            self.offer_buffer(index);
        }
        self.rx.kick();
    }

    pub(super) fn offer_buffer(&mut self, index: u16) {
        let address = RX_BASE + u64::from(index) * 4096;
        self.rx.add(index, &[Buffer::writable(address, RX_LEN)]);
    }

    /// Sends a packet whose header need not tell the truth.
    pub(super) fn send(&mut self, packet: &Wire) {
        let slot = self.tx_slot();
        let address = TX_BASE + u64::from(slot) * TX_STRIDE;
        let put = |at: u64, bytes: &[u8]| {
            self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        };
        put(address, &packet.header());
        put(address + 64, &packet.payload);
        let len = u32::try_from(packet.payload.len()).unwrap();
        // Payloads come in two pieces, as those of Linux may.
        let (first, second) = (len / 2, len - len / 2);
        let pieces = [
            Buffer::readable(address, HEADER_LEN),
            Buffer::readable(address + 64, first),
            Buffer::readable(address + 64 + u64::from(first), second),
        ];
        let count = if len == 0 { 1 } else { 3 };
        let head = slot * 2;
        if count == 1 {
            self.tx.add(head, &pieces[..1]);
        } else {
            // Two descriptors for each slot: the header and an indirect table would be three.
            let table = address + TX_STRIDE - 64;
            let tx = &self.tx;
            tx.write_descriptor_at(table, 0, pieces[0].address, pieces[0].len, 1, 1);
            tx.write_descriptor_at(table, 1, pieces[1].address, first, 1, 2);
            tx.write_descriptor_at(table, 2, pieces[2].address, second, 0, 0);
            tx.write_descriptor(head, table, 48, 4, 0);
            self.tx.offer(head);
        }
        self.tx.kick();
    }

    fn tx_slot(&mut self) -> u16 {
        let (tx, free) = (&mut self.tx, &mut self.tx_free);
        let slot = self.interrupts.wait_for(|| {
            while let Some((head, _)) = tx.take_used() {
                free.push(head / 2);
            }
            free.pop()
        });
        slot.expect("the device takes packets")
    }

    /// True when [`Self::send`] does not have to wait.
    pub(super) fn can_send(&mut self) -> bool {
        while let Some((head, _)) = self.tx.take_used() {
            self.tx_free.push(head / 2);
        }
        !self.tx_free.is_empty()
    }

    /// The next packet of the host, if it is there.
    pub(super) fn try_receive(&mut self) -> Option<Wire> {
        let (head, len) = self.rx.take_used()?;
        let address = RX_BASE + u64::from(head) * 4096;
        let mut bytes = vec![0; len as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        if self.gives_back {
            self.offer_buffer(head);
            self.rx.kick();
        }
        Some(Wire::parse(&bytes))
    }

    /// Waits for the next packet of the host.
    pub(super) fn receive(&mut self) -> Wire {
        let deadline = Instant::now() + PATIENCE;
        let interrupts = Arc::clone(&self.interrupts);
        interrupts
            .wait_for(|| {
                assert!(Instant::now() < deadline, "no packet came");
                self.try_receive()
            })
            .expect("the host sends a packet")
    }

    /// Waits for a packet with this operation; there must be no other before it.
    pub(super) fn expect(&mut self, op: u16) -> Wire {
        let packet = self.receive();
        assert_eq!(packet.op, op, "{packet:?}");
        packet
    }

    /// Nothing comes, as far as one can tell.
    pub(super) fn expect_silence(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.try_receive(), None);
    }

    pub(super) fn reset_is_needed(&self) -> bool {
        let interrupts = &self.interrupts;
        interrupts
            .wait_for(|| interrupts.reset_is_needed().then_some(()))
            .is_some()
    }

    /// A program's stream, which has not said anything.
    pub(super) fn program(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("vsock.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Opens a connection from the host to `port`.
    pub(super) fn open(&mut self, port: u32) -> (UnixStream, Socket) {
        let mut stream = self.program();
        writeln!(stream, "CONNECT {port}").unwrap();
        let request = self.expect(REQUEST);
        assert_eq!((request.port, request.kind), (port, 1));
        let mut socket = Socket::new(port, request.peer);
        socket.update(&request);
        self.send(&socket.packet(RESPONSE));
        assert_eq!(read_line(&mut stream), format!("OK {}\n", request.peer));
        (stream, socket)
    }

    /// A listener of the host for `port`.
    pub(super) fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("vsock.sock_{port}"))).unwrap()
    }

    /// Waits until so many connections are open.
    pub(super) fn expect_connections(&self, count: u32) {
        for _ in 0..2_000 {
            if self.handle.connections() == count {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} connections, not {count}", self.handle.connections());
    }
}

/// Reads no more than a line.
pub(super) fn read_line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, stream)
        .read_line(&mut line)
        .unwrap();
    line
}

/// The guest's end of a connection.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) port: u32,
    pub(super) peer: u32,
    pub(super) sent: u32,
    pub(super) received: u32,
    told: u32,
    peer_alloc: u32,
    peer_fwd: u32,
}

impl Socket {
    pub(super) fn new(port: u32, peer: u32) -> Self {
        Self {
            port,
            peer,
            sent: 0,
            received: 0,
            told: 0,
            peer_alloc: 0,
            peer_fwd: 0,
        }
    }

    /// Takes the credit out of a packet of the host.
    pub(super) fn update(&mut self, packet: &Wire) {
        self.peer_alloc = packet.buf_alloc;
        self.peer_fwd = packet.fwd_cnt;
    }

    /// What may be sent.
    pub(super) fn room(&self) -> u32 {
        self.peer_alloc - self.sent.wrapping_sub(self.peer_fwd)
    }

    /// A packet that acknowledges everything that was received.
    pub(super) fn packet(&mut self, op: u16) -> Wire {
        self.told = self.received;
        let mut packet = Wire::new(op, self.port, self.peer);
        packet.fwd_cnt = self.told;
        packet
    }

    /// A packet with data.
    pub(super) fn data(&mut self, payload: &[u8]) -> Wire {
        self.sent = self
            .sent
            .wrapping_add(u32::try_from(payload.len()).unwrap());
        self.packet(RW).with_payload(payload)
    }

    /// Data arrived. Returns whether the host should be told.
    pub(super) fn take(&mut self, packet: &Wire) -> bool {
        self.update(packet);
        self.received = self.received.wrapping_add(packet.len);
        assert!(
            self.received.wrapping_sub(self.told) <= GUEST_BUFFER,
            "overrun"
        );
        self.received.wrapping_sub(self.told) >= GUEST_BUFFER / 2
    }
}

//! Disks from the driver's side.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::request::DATA_MAX;
use super::*;
use crate::virtio::testing::*;

const MEMORY: usize = 4 << 20;
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x1_1000;
const NO_STATUS: u8 = 0xee;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

struct Driver {
    memory: GuestMemoryMmap,
    queue: DriverQueue,
    interrupts: Arc<Interrupts>,
    disk: Disk,
    file: File,
}

fn content(len: u64) -> Vec<u8> {
    (0..len)
        .map(|n| u8::try_from(n * 7 % 253 + 1).unwrap())
        .collect()
}

/// A driver of a disk whose extents hold [`content`] cut after `cuts` bytes.
fn driver(len: u64, cuts: &[u64], read_only: bool, event_idx: bool) -> Driver {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&content(len), 0).unwrap();
    let mut extents = Vec::new();
    let mut offset = 0;
    for end in cuts.iter().copied().chain([len]) {
        extents.push(Extent {
            file: file.try_clone().unwrap(),
            offset,
            length: end - offset,
        });
        offset = end;
    }
    let options = DiskOptions {
        serial: "disk-1".into(),
        read_only,
        extents,
    };
    let mut disk = Disk::new(options).unwrap();
    let memory = guest_memory(MEMORY);
    let queue = DriverQueue::new(&memory, 0, QUEUE_SIZES[0], event_idx);
    let interrupts = Arc::new(Interrupts::default());
    disk.activate(activation(&memory, &[&queue], &interrupts))
        .unwrap();
    Driver {
        memory,
        queue,
        interrupts,
        disk,
        file,
    }
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

    fn put_header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(HEADER, &header);
        self.put(STATUS, &[NO_STATUS]);
    }

    /// Does a request whose data are in `data`, and returns its status and the used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.put_header(kind, sector);
        let mut buffers = vec![Buffer::readable(HEADER, 16)];
        buffers.extend(data);
        buffers.push(Buffer::writable(STATUS, 1));
        self.queue.add(0, &buffers);
        self.queue.kick();
        let used = self.used();
        assert_eq!(used.0, 0);
        (self.get(STATUS, 1)[0], used.1)
    }

    fn used(&mut self) -> (u16, u32) {
        let queue = &mut self.queue;
        self.interrupts
            .wait_for(|| queue.take_used())
            .expect("the disk answers")
    }

    fn needs_reset(&self) -> bool {
        self.interrupts
            .wait_for(|| self.interrupts.reset_is_needed().then_some(()))
            .is_some()
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> (u8, u32) {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in ranges {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        self.put(DATA, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        self.request(kind, 0, &[Buffer::readable(DATA, len)])
    }
}

#[test]
fn a_read_crosses_extents_and_descriptors() {
    for event_idx in [false, true] {
        let mut driver = driver(8192, &[512, 1536, 4096], true, event_idx);
        let pieces = [
            Buffer::writable(DATA, 700),
            Buffer::writable(DATA + 0x1000, 0),
            Buffer::writable(DATA + 700, 4000),
            Buffer::writable(DATA + 4700, 8192 - 4700),
        ];
        assert_eq!(driver.request(IN, 0, &pieces), (OK, 8193));
        assert_eq!(driver.get(DATA, 8192), content(8192));
        assert_eq!(
            driver.request(IN, 2, &[Buffer::writable(DATA, 1024)]),
            (OK, 1025)
        );
        assert_eq!(driver.get(DATA, 1024), content(8192)[1024..2048]);
    }
}

#[test]
fn header_data_and_status_can_share_descriptors() {
    let mut driver = driver(4096, &[], false, false);
    driver.put_header(OUT, 1);
    driver.put(HEADER + 16, &[0x5a; 512]);
    let buffers = [
        Buffer::readable(HEADER, 7),
        Buffer::readable(HEADER + 7, 521),
        Buffer::writable(STATUS, 1),
    ];
    driver.queue.add(0, &buffers);
    driver.queue.kick();
    assert_eq!(driver.used(), (0, 1));
    let mut written = [0; 512];
    driver.file.read_exact_at(&mut written, 512).unwrap();
    assert_eq!(written, [0x5a; 512]);
    driver.put_header(IN, 1);
    let buffers = [Buffer::readable(HEADER, 16), Buffer::writable(DATA, 513)];
    driver.queue.add(0, &buffers);
    driver.queue.kick();
    assert_eq!(driver.used(), (0, 513));
    assert_eq!(driver.get(DATA, 512), [0x5a; 512]);
    assert_eq!(driver.get(DATA + 512, 1), [OK]);
}

#[test]
fn an_indirect_chain_is_a_chain() {
    let mut driver = driver(4096, &[], true, false);
    driver.put_header(IN, 0);
    let table = 0x3_0000;
    let queue = &driver.queue;
    queue.write_descriptor_at(table, 0, HEADER, 16, NEXT, 1);
    queue.write_descriptor_at(table, 1, DATA, 512, NEXT | WRITE, 2);
    queue.write_descriptor_at(table, 2, STATUS, 1, WRITE, 0);
    queue.write_descriptor(5, table, 48, INDIRECT, 0);
    driver.queue.offer(5);
    driver.queue.kick();
    assert_eq!(driver.used(), (5, 513));
    assert_eq!(driver.get(DATA, 512), content(512));
}

#[test]
fn what_is_written_is_read_back() {
    let mut driver = driver(1 << 20, &[], false, true);
    driver.put(DATA, &[0xab; 4096]);
    assert_eq!(
        driver.request(OUT, 16, &[Buffer::readable(DATA, 4096)]),
        (OK, 1)
    );
    assert_eq!(driver.request(FLUSH, 0, &[]), (OK, 1));
    let mut expected = content(1 << 20);
    expected[8192..12288].fill(0xab);
    let mut file = vec![0; 1 << 20];
    driver.file.read_exact_at(&mut file, 0).unwrap();
    assert!(file == expected);
}

#[test]
fn requests_outside_the_disk_are_io_errors() {
    let mut driver = driver(4096, &[], false, false);
    for kind in [IN, OUT] {
        let buffer = |len| Buffer {
            address: DATA,
            len,
            writable: kind == IN,
        };
        for (sector, len) in [(8, 512), (7, 1024), (u64::MAX, 512), (u64::MAX / 512, 512)] {
            assert_eq!(driver.request(kind, sector, &[buffer(len)]), (IOERR, 1));
        }
        for len in [1, 511, 513] {
            assert_eq!(driver.request(kind, 0, &[buffer(len)]), (IOERR, 1));
        }
        assert_eq!(driver.request(kind, 8, &[]), (OK, 1), "nothing is nowhere");
        assert_eq!(driver.request(kind, 7, &[buffer(512)]).0, OK);
    }
    assert!(!driver.interrupts.reset_is_needed());
}

#[test]
fn a_request_over_the_announced_size_is_an_io_error() {
    let mut driver = driver(4096, &[], false, false);
    let most = u32::try_from(MEMORY).unwrap();
    let count = usize::try_from(DATA_MAX).unwrap() / MEMORY + 1;
    let buffers = vec![Buffer::writable(0, most); count];
    assert_eq!(driver.request(IN, 0, &buffers), (IOERR, 1));
}

#[test]
fn a_write_to_a_read_only_disk_is_an_io_error() {
    let mut driver = driver(4096, &[], true, false);
    driver.put(DATA, &[0xab; 512]);
    assert_eq!(
        driver.request(OUT, 0, &[Buffer::readable(DATA, 512)]),
        (IOERR, 1)
    );
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(driver.ranges(kind, &[(0, 1, 0)]), (UNSUPP, 1));
    }
    let mut file = vec![0; 4096];
    driver.file.read_exact_at(&mut file, 0).unwrap();
    assert_eq!(file, content(4096));
}

#[test]
fn an_unknown_type_is_unsupported() {
    let mut driver = driver(4096, &[], false, false);
    for kind in [2, 3, 5, 14, u32::MAX] {
        assert_eq!(driver.request(kind, 0, &[]), (UNSUPP, 1));
    }
}

#[test]
fn get_id_returns_the_serial() {
    let mut driver = driver(4096, &[], true, false);
    assert_eq!(
        driver.request(GET_ID, 0, &[Buffer::writable(DATA, 20)]),
        (OK, 21)
    );
    assert_eq!(&driver.get(DATA, 20), b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(
        driver.request(GET_ID, 0, &[Buffer::writable(DATA, 19)]),
        (IOERR, 1)
    );
}

#[test]
fn a_discard_gives_blocks_back() {
    let len = 1 << 20;
    let mut driver = driver(len, &[], false, false);
    let blocks = driver.file.metadata().unwrap().blocks();
    assert_eq!(
        driver.ranges(DISCARD, &[(8, 8, 0), (1024, 1024, 0)]),
        (OK, 1)
    );
    assert!(driver.file.metadata().unwrap().blocks() < blocks);
    assert_eq!(driver.file.metadata().unwrap().len(), len);
    let mut expected = content(len);
    expected[4096..8192].fill(0);
    expected[512 * 1024..].fill(0);
    let mut file = vec![0; expected.len()];
    driver.file.read_exact_at(&mut file, 0).unwrap();
    assert!(file == expected);
}

#[test]
fn write_zeroes_makes_zeroes_with_and_without_unmap() {
    let mut driver = driver(1 << 20, &[], false, false);
    let ranges = [(1, 2, 0), (100, 300, 1), (2047, 1, 0)];
    assert_eq!(driver.ranges(WRITE_ZEROES, &ranges), (OK, 1));
    let mut expected = content(1 << 20);
    for (start, count) in [(1, 2), (100, 300), (2047, 1)] {
        expected[start * 512..(start + count) * 512].fill(0);
    }
    let mut file = vec![0; 1 << 20];
    driver.file.read_exact_at(&mut file, 0).unwrap();
    assert!(file == expected);
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let mut driver = driver(4096, &[], false, false);
    for kind in [DISCARD, WRITE_ZEROES] {
        for range in [(8, 1, 0), (0, 9, 0), (u64::MAX, 1, 0), (0, u32::MAX, 0)] {
            assert_eq!(driver.ranges(kind, &[(0, 1, 0), range]), (IOERR, 1));
        }
        assert_eq!(driver.ranges(kind, &[(0, 1, 2)]), (UNSUPP, 1));
        assert_eq!(driver.ranges(kind, &[]), (IOERR, 1));
        let many = vec![(0, 1, 0); RANGES_MAX as usize + 1];
        assert_eq!(driver.ranges(kind, &many), (IOERR, 1));
        assert_eq!(
            driver.request(kind, 0, &[Buffer::readable(DATA, 15)]),
            (IOERR, 1)
        );
    }
    assert_eq!(driver.ranges(DISCARD, &[(0, 1, 1)]), (UNSUPP, 1));
    let mut file = vec![0; 4096];
    driver.file.read_exact_at(&mut file, 0).unwrap();
    assert_eq!(file, content(4096), "a refused request changes nothing");
}

#[test]
fn a_file_that_became_shorter_is_an_io_error() {
    let mut driver = driver(8192, &[4096], true, false);
    driver.file.set_len(4096).unwrap();
    let (status, _) = driver.request(IN, 0, &[Buffer::writable(DATA, 8192)]);
    assert_eq!(status, IOERR);
}

#[test]
fn a_full_disk_is_an_io_error() {
    let full = File::options().read(true).write(true).open("/dev/full");
    let extent = Extent {
        file: full.unwrap(),
        offset: 0,
        length: 4096,
    };
    let mut driver = driver(512, &[], false, false);
    driver.disk.deactivate();
    driver.disk = Disk::new(DiskOptions {
        serial: "full".into(),
        read_only: false,
        extents: vec![extent],
    })
    .unwrap();
    let activation = activation(&driver.memory, &[&driver.queue], &driver.interrupts);
    driver.disk.activate(activation).unwrap();
    assert_eq!(
        driver.request(OUT, 0, &[Buffer::readable(DATA, 512)]),
        (IOERR, 1)
    );
}

#[test]
fn a_chain_that_is_none_needs_a_reset() {
    let end = u64::try_from(MEMORY).unwrap();
    let cases: [&[AnyDescriptor]; 9] = [
        // A loop.
        &[(HEADER, 16, NEXT, 1), (DATA, 1, NEXT | WRITE, 1)],
        // Next leads outside the table.
        &[(HEADER, 16, NEXT, 60_000)],
        // No room for a status.
        &[(HEADER, 16, 0, 0)],
        // A zero-length status.
        &[(HEADER, 16, NEXT, 1), (STATUS, 0, WRITE, 0)],
        // Not even a header.
        &[(HEADER, 15, NEXT, 1), (STATUS, 1, WRITE, 0)],
        // Outside memory, and wrapping around.
        &[(HEADER, 16, NEXT, 1), (end - 1, 2, WRITE, 0)],
        &[(u64::MAX, 16, NEXT, 1), (STATUS, 1, WRITE, 0)],
        // Readable after writable.
        &[(STATUS, 1, NEXT | WRITE, 1), (HEADER, 16, 0, 0)],
        // An indirect table that is cut short.
        &[(HEADER, 15, INDIRECT, 0)],
    ];
    for descriptors in cases {
        let mut driver = driver(4096, &[], false, false);
        driver.put_header(IN, 0);
        offer_anything(&mut driver.queue, descriptors, &[0]);
        assert!(driver.needs_reset(), "{descriptors:?}");
        assert!(driver.queue.take_used().is_none());
    }
}

#[test]
fn a_head_outside_the_table_needs_a_reset() {
    let mut driver = driver(4096, &[], false, false);
    offer_anything(&mut driver.queue, &[], &[QUEUE_SIZES[0]]);
    assert!(driver.needs_reset());
}

#[test]
fn more_chains_than_descriptors_need_a_reset() {
    let driver = driver(4096, &[], false, false);
    driver.queue.set_available(QUEUE_SIZES[0] + 1);
    driver.queue.kick();
    assert!(driver.needs_reset());
}

#[test]
fn an_indirect_chain_longer_than_the_queue_needs_a_reset() {
    let mut driver = driver(4096, &[], false, false);
    driver.put_header(IN, 0);
    let (table, count) = (0x10_0000, QUEUE_SIZES[0] + 1);
    for index in 0..count {
        let flags = if index + 1 == count { WRITE } else { NEXT };
        driver
            .queue
            .write_descriptor_at(table, index, HEADER, 16, flags, index + 1);
    }
    let len = u32::from(count) * 16;
    offer_anything(&mut driver.queue, &[(table, len, INDIRECT, 0)], &[0]);
    assert!(driver.needs_reset());
}

#[test]
fn many_requests_are_answered_with_fewer_interrupts() {
    let mut driver = driver(1 << 16, &[], true, false);
    driver.disk.deactivate();
    driver.put_header(IN, 3);
    for n in 0..40 {
        let data = DATA + u64::from(n) * 512;
        let buffers = [
            Buffer::readable(HEADER, 16),
            Buffer::writable(data, 512),
            Buffer::writable(STATUS, 1),
        ];
        driver.queue.add(n * 3, &buffers);
    }
    let activation = activation(&driver.memory, &[&driver.queue], &driver.interrupts);
    driver.disk.activate(activation).unwrap();
    for n in 0..40 {
        assert_eq!(driver.used(), (n * 3, 513));
        let data = driver.get(DATA + u64::from(n) * 512, 512);
        assert_eq!(data, content(1 << 16)[1536..2048]);
    }
    driver.disk.deactivate();
    assert!(driver.interrupts.count() <= 3, "{:?}", driver.interrupts);
}

#[test]
fn a_paused_disk_goes_on_where_it_stopped() {
    let mut driver = driver(4096, &[], true, true);
    let data = [Buffer::writable(DATA, 512)];
    assert_eq!(driver.request(IN, 0, &data).0, OK);
    let queues = driver.disk.deactivate();
    assert_eq!(queues.len(), 1);
    assert!(driver.disk.deactivate().is_empty());
    driver.put_header(IN, 1);
    let buffers = [
        Buffer::readable(HEADER, 16),
        Buffer::writable(DATA, 512),
        Buffer::writable(STATUS, 1),
    ];
    driver.queue.add(0, &buffers);
    driver.queue.kick();
    assert!(driver.queue.take_used().is_none());
    let mut activation = activation(&driver.memory, &[], &driver.interrupts);
    activation.queues = queues;
    driver.disk.activate(activation).unwrap();
    assert_eq!(driver.used(), (0, 513));
    assert_eq!(driver.get(DATA, 512), content(4096)[512..1024]);
}

#[test]
fn activation_without_a_queue_is_an_error() {
    let mut driver = driver(4096, &[], true, false);
    driver.disk.deactivate();
    let empty = activation(&driver.memory, &[], &driver.interrupts);
    assert!(matches!(
        driver.disk.activate(empty),
        Err(ActivateError::QueueMissing(0))
    ));
}

#[test]
fn a_disk_that_cannot_be_is_refused() {
    let disk = |serial: &str, read_only, count| {
        let extents = (0..count)
            .map(|_| {
                let file = tempfile::tempfile().unwrap();
                file.set_len(512).unwrap();
                Extent {
                    file,
                    offset: 0,
                    length: 512,
                }
            })
            .collect();
        Disk::new(DiskOptions {
            serial: serial.into(),
            read_only,
            extents,
        })
    };
    for serial in ["", "a b", "a/b", &"x".repeat(21), "é"] {
        assert!(matches!(disk(serial, true, 1), Err(DiskError::Serial(_))));
    }
    assert!(matches!(disk("x", false, 2), Err(DiskError::Writable(2))));
    assert!(disk(&"x".repeat(20), true, 2).is_ok());
}

#[test]
fn the_configuration_names_size_and_limits() {
    let writable = driver(1 << 20, &[], false, false).disk;
    let config = writable.config();
    assert_eq!(config[..8], 2048_u64.to_le_bytes());
    assert_eq!(config[12..16], 126_u32.to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(writable.features() & feature::RO, 0);
    assert_ne!(writable.features() & feature::DISCARD, 0);
    let read_only = driver(1 << 20, &[], true, false).disk;
    assert_ne!(read_only.features() & feature::RO, 0);
    assert_eq!(
        read_only.features() & (feature::FLUSH | feature::DISCARD),
        0
    );
    assert_eq!(
        read_only.state(),
        serde_json::json!({
            "serial": "disk-1", "read_only": true, "size_bytes": 1 << 20, "extents": 1
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the driver does, the disk lives and stops when told.
    #[test]
    fn any_chain_is_survived(
        headers in prop::collection::vec((0_u32..16, 0_u64..20), 4),
        descriptors in prop::collection::vec(
            (
                prop_oneof![0_u64..0x4000, HEADER..HEADER + 64, DATA..DATA + 8192, any::<u64>()],
                prop_oneof![0_u32..64, Just(512_u32), 0_u32..9000, any::<u32>()],
                0_u16..8,
                prop_oneof![0_u16..16, any::<u16>()],
            ),
            1..16,
        ),
        heads in prop::collection::vec(prop_oneof![0_u16..16, any::<u16>()], 1..20),
    ) {
        let mut driver = driver(8192, &[], false, false);
        for ((kind, sector), at) in headers.iter().zip(0_u64..) {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            bytes[8..].copy_from_slice(&sector.to_le_bytes());
            driver.put(HEADER + at * 16, &bytes);
        }
        offer_anything(&mut driver.queue, &descriptors, &heads);
        driver.queue.settle(&driver.interrupts);
        prop_assert_eq!(driver.disk.deactivate().len(), 1);
    }
}

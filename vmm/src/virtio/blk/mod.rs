//! virtio-blk, a disk (virtio 1.2 section 5.2).
//!
//! A disk is a list of [`Extent`]s of files, one after the other: an image of many layers is one
//! disk. A writable disk has one extent. Requests are served in order by one thread, named after
//! the disk, between guest memory and the files without a copy in between:
//!
//! ```text
//! chain ── request.rs ──> Operation, or a status that refuses it ── execute.rs ──> status
//! ```
//!
//! What is wrong *in* a request is answered with a status (IOERR, UNSUPP); a chain with no room for
//! one, or that is no chain, makes the device need a reset.

mod execute;
mod extents;
mod request;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use serde::Serialize;

use self::execute::Executor;
pub(crate) use self::extents::{Extent, Extents};
use self::request::SERIAL_LEN;
use super::queue_worker::QueueWorker;
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};

const NAME: &str = "blk";
const DEVICE_TYPE: u16 = 2;

/// Unit of offsets and lengths on the wire, whatever the block size.
const SECTOR_SIZE: u64 = 512;

const QUEUE_SIZES: [u16; 1] = [128];

/// Most data segments of a request: a chain is no longer than the queue, header and status taken
/// off.
const SEG_MAX: u32 = QUEUE_SIZES[0] as u32 - 2;

/// Most bytes in a segment.
const SIZE_MAX: u32 = 1 << 20;

/// Most ranges in a request to discard or write zeroes.
const RANGES_MAX: u32 = 32;

/// Most sectors in a range to discard: 4 GiB. Holes are cheap.
const DISCARD_SECTORS_MAX: u32 = 1 << 23;

/// Most sectors in a range to write zeroes to: 16 MiB, since they may have to be written.
const WRITE_ZEROES_SECTORS_MAX: u32 = 1 << 15;

/// Blocks of this many sectors are worth a discard: what file systems allocate.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// Feature bits (section 5.2.3).
mod feature {
    pub(super) const SIZE_MAX: u64 = 1 << 1;
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Length of `struct virtio_blk_config` up to the fields of features that are never offered.
const CONFIG_LEN: usize = 60;

/// What a disk is made of.
#[derive(Debug)]
pub(crate) struct DiskOptions {
    /// 1 to 20 bytes of `[A-Za-z0-9._-]`: what the guest finds the disk by.
    pub(crate) serial: String,
    /// The guest cannot write.
    pub(crate) read_only: bool,
    /// The contents, in order; a writable disk has one extent.
    pub(crate) extents: Vec<Extent>,
}

/// A disk cannot be made of what was given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The serial is too long, empty or has other characters.
    #[error("not a disk serial: {0:?}")]
    Serial(String),
    /// No extents, or more than a disk can have.
    #[error("a disk cannot have {0} extents")]
    Count(usize),
    /// A writable disk with several extents.
    #[error("a writable disk has one extent, not {0}")]
    Writable(usize),
    /// A length that is not a multiple of 512.
    #[error("extent {index}: {length} bytes are not whole sectors")]
    Length {
        /// Which extent.
        index: usize,
        /// Its length in bytes.
        length: u64,
    },
    /// Beyond what a file or a disk can hold.
    #[error("extent {0}: out of range")]
    Range(usize),
    /// The file ends before the extent.
    #[error("extent {index}: the file has {length} bytes, the extent ends at {end}")]
    Short {
        /// Which extent.
        index: usize,
        /// Length of the file in bytes.
        length: u64,
        /// Where the extent ends in it.
        end: u64,
    },
    /// The file cannot be examined.
    #[error("extent {index}: the file cannot be examined")]
    File {
        /// Which extent.
        index: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What the device and its worker share.
#[derive(Debug)]
struct Backing {
    serial: String,
    read_only: bool,
    extents: Extents,
}

impl Backing {
    /// The answer to GET_ID: the serial and zeroes (section 5.2.6.1).
    fn id(&self) -> [u8; SERIAL_LEN] {
        let mut id = [0; SERIAL_LEN];
        let serial = self.serial.as_bytes();
        id[..serial.len()].copy_from_slice(serial);
        id
    }
}

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    backing: Arc<Backing>,
    worker: Option<QueueWorker>,
}

/// What a snapshot keeps of a disk, its files aside.
#[derive(Debug, Serialize)]
struct DiskState<'a> {
    serial: &'a str,
    read_only: bool,
    size_bytes: u64,
    extents: usize,
}

impl Disk {
    /// An idle disk.
    ///
    /// # Errors
    ///
    /// [`DiskError`] names what is wrong with the options.
    pub(crate) fn new(options: DiskOptions) -> Result<Self, DiskError> {
        let DiskOptions {
            serial,
            read_only,
            extents,
        } = options;
        let in_set = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=SERIAL_LEN).contains(&serial.len()) || !serial.bytes().all(in_set) {
            return Err(DiskError::Serial(serial.chars().take(64).collect()));
        }
        if !read_only && extents.len() > 1 {
            return Err(DiskError::Writable(extents.len()));
        }
        let backing = Backing {
            serial,
            read_only,
            extents: Extents::new(extents)?,
        };
        Ok(Self {
            backing: Arc::new(backing),
            worker: None,
        })
    }
}

impl VirtioDevice for Disk {
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
        let always = feature::SIZE_MAX | feature::SEG_MAX | feature::BLK_SIZE;
        if self.backing.read_only {
            always | feature::RO
        } else {
            always | feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES
        }
    }

    /// `struct virtio_blk_config` (section 5.2.4), fields of features that are not offered zero.
    fn config(&self) -> Vec<u8> {
        let sectors = self.backing.extents.size() / SECTOR_SIZE;
        let block_size = u32::try_from(SECTOR_SIZE).expect("512 fits in 32 bits");
        let mut config = vec![0; CONFIG_LEN];
        config[0..8].copy_from_slice(&sectors.to_le_bytes());
        let mut put = |at: usize, value: u32| {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(8, SIZE_MAX);
        put(12, SEG_MAX);
        put(20, block_size);
        if !self.backing.read_only {
            put(36, DISCARD_SECTORS_MAX);
            put(40, RANGES_MAX);
            put(44, DISCARD_ALIGNMENT_SECTORS);
            put(48, WRITE_ZEROES_SECTORS_MAX);
            put(52, RANGES_MAX);
            // write_zeroes_may_unmap, and three unused bytes.
            put(56, 1);
        }
        config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let executor = Executor {
            backing: Arc::clone(&self.backing),
        };
        let thread_name = self.backing.serial.clone();
        let worker = QueueWorker::start(NAME, thread_name, activation, executor)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<ActiveQueue> {
        self.worker.take().map_or_else(Vec::new, QueueWorker::stop)
    }

    fn state(&self) -> serde_json::Value {
        let state = DiskState {
            serial: &self.backing.serial,
            read_only: self.backing.read_only,
            size_bytes: self.backing.extents.size(),
            extents: self.backing.extents.count(),
        };
        serde_json::to_value(state).expect("strings and numbers are JSON")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.deactivate();
    }
}

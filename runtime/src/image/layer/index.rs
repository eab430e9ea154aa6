//! A layer's index: its archive's entries, normalised and checked, without their data.
//!
//! ```text
//! header   "ISOPODLX", u32 version
//! record   u32 length of what follows, then
//!          u8 kind, u16 mode, u32 uid, u32 gid, i64 mtime s, u32 mtime ns,
//!          u64 a, u32 b           File: size, first block in the data blob; Device: 0, rdev
//!          u16 length, path
//!          u16 length, link       target of a link, else empty
//!          u8 count, then for each extended attribute: u8 length, name, u16 length, value
//! footer   u32 0, u64 number of records, u32 blocks of the data blob, u32 crc32c of all before it
//! ```
//!
//! Everything is little-endian. Written once and read in order, through a small buffer. The checksum
//! is for disks that forget: who can write here is root.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use crate::image::limits::{
    MAX_ENTRIES, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_XATTR_BYTES, MAX_XATTRS,
};
use crate::image::tar::Timestamp;

const MAGIC: &[u8; 8] = b"ISOPODLX";
const VERSION: u32 = 1;

/// Bytes of a record before its first variable part.
const FIXED: usize = 1 + 2 + 4 + 4 + 8 + 4 + 8 + 4;

/// The longest record: two paths, and all attributes with their lengths.
const MAX_RECORD: usize =
    FIXED + 2 * (2 + MAX_PATH_BYTES) + 1 + MAX_XATTR_BYTES + MAX_XATTRS * (1 + 2);

/// What an entry does to the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Makes a directory, or gives the one that is there new metadata.
    Directory,
    /// Puts a regular file.
    File {
        /// In bytes.
        size: u64,
        /// Where its data starts in the data blob, in blocks. Meaningless if it is empty.
        block: u32,
    },
    /// Puts a symbolic link to this target.
    Symlink(Vec<u8>),
    /// Gives the file at this path one more name.
    HardLink(Vec<u8>),
    /// Puts a character device with this number, as `erofs_inode.rdev` has it.
    CharDevice(u32),
    /// Puts a block device with this number.
    BlockDevice(u32),
    /// Puts a named pipe.
    Fifo,
    /// Hides what lower layers have at the path (image-spec, "Whiteouts").
    Whiteout,
    /// Hides what lower layers have in the directory (image-spec, "Opaque Whiteout").
    Opaque,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Normalised: components separated by single slashes, none of them `.` or `..`. Empty is the
    /// root.
    pub(crate) path: Vec<u8>,
    /// What happens there.
    pub(crate) change: Change,
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last modification.
    pub(crate) mtime: Timestamp,
    /// Extended attributes, sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An index that cannot be one of ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// It cannot be read.
    #[error("reading it")]
    Io(#[from] io::Error),
    /// It says something impossible.
    #[error("{0}")]
    Nonsense(&'static str),
}

/// Counts and sums up what passes through.
#[derive(Debug)]
struct Summed<F> {
    file: F,
    crc: u32,
    bytes: u64,
}

impl<F> Summed<F> {
    fn take_in(&mut self, data: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, data);
        self.bytes += data.len() as u64;
    }
}

/// An index being written.
#[derive(Debug)]
pub(super) struct IndexWriter {
    output: Summed<BufWriter<File>>,
    records: u64,
    scratch: Vec<u8>,
}

impl IndexWriter {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let output = Summed {
            file: BufWriter::with_capacity(128 << 10, file),
            crc: 0,
            bytes: 0,
        };
        let mut writer = Self {
            output,
            records: 0,
            scratch: Vec::new(),
        };
        writer.write(MAGIC)?;
        writer.write(&VERSION.to_le_bytes())?;
        Ok(writer)
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.output.bytes
    }

    /// Records written so far.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    pub(super) fn push(&mut self, record: &Record) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.scratch);
        buffer.clear();
        buffer.extend_from_slice(&[0; 4]);
        encode(record, &mut buffer);
        let length = u32::try_from(buffer.len() - 4).map_err(io::Error::other)?;
        buffer[..4].copy_from_slice(&length.to_le_bytes());
        self.write(&buffer)?;
        self.scratch = buffer;
        self.records += 1;
        Ok(())
    }

    /// Writes the footer and makes the file durable.
    pub(super) fn finish(mut self, blocks: u32) -> io::Result<()> {
        self.write(&0_u32.to_le_bytes())?;
        let records = self.records;
        self.write(&records.to_le_bytes())?;
        self.write(&blocks.to_le_bytes())?;
        let crc = self.output.crc;
        self.write(&crc.to_le_bytes())?;
        let file = self
            .output
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_data()
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.output.take_in(data);
        self.output.file.write_all(data)
    }
}

fn encode(record: &Record, out: &mut Vec<u8>) {
    let (kind, a, b, link): (u8, u64, u32, &[u8]) = match &record.change {
        Change::Directory => (1, 0, 0, &[]),
        Change::File { size, block } => (2, *size, *block, &[]),
        Change::Symlink(target) => (3, 0, 0, target),
        Change::HardLink(target) => (4, 0, 0, target),
        Change::CharDevice(number) => (5, 0, *number, &[]),
        Change::BlockDevice(number) => (6, 0, *number, &[]),
        Change::Fifo => (7, 0, 0, &[]),
        Change::Whiteout => (8, 0, 0, &[]),
        Change::Opaque => (9, 0, 0, &[]),
    };
    out.push(kind);
    out.extend_from_slice(&record.mode.to_le_bytes());
    out.extend_from_slice(&record.uid.to_le_bytes());
    out.extend_from_slice(&record.gid.to_le_bytes());
    out.extend_from_slice(&record.mtime.seconds.to_le_bytes());
    out.extend_from_slice(&record.mtime.nanoseconds.to_le_bytes());
    out.extend_from_slice(&a.to_le_bytes());
    out.extend_from_slice(&b.to_le_bytes());
    encode_long(&record.path, out);
    encode_long(link, out);
    out.push(u8::try_from(record.xattrs.len()).expect("MAX_XATTRS fits a byte"));
    for (name, value) in &record.xattrs {
        out.push(u8::try_from(name.len()).expect("MAX_NAME_BYTES fits a byte"));
        out.extend_from_slice(name);
        encode_long(value, out);
    }
}

fn encode_long(bytes: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(bytes.len()).expect("paths and values were bounded when read");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// An index being read.
#[derive(Debug)]
pub(crate) struct IndexReader<F> {
    input: Summed<BufReader<F>>,
    records: u64,
    buffer: Vec<u8>,
    /// Blocks of the data blob, once the footer was read.
    blocks: Option<u32>,
}

impl<F: Read> IndexReader<F> {
    /// Reads the header.
    ///
    /// # Errors
    /// It is not an index, or of another version.
    pub(crate) fn new(file: F) -> Result<Self, Damage> {
        let input = Summed {
            file: BufReader::with_capacity(128 << 10, file),
            crc: 0,
            bytes: 0,
        };
        let mut reader = Self {
            input,
            records: 0,
            buffer: Vec::new(),
            blocks: None,
        };
        if &reader.array::<8>()? != MAGIC {
            return Err(Damage::Nonsense("it does not begin like a layer's index"));
        }
        if u32::from_le_bytes(reader.array()?) != VERSION {
            return Err(Damage::Nonsense("it has another version"));
        }
        Ok(reader)
    }

    /// The next record, or `None` after the last, when the checksum was found to be right.
    ///
    /// # Errors
    /// The file is damaged.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, Damage> {
        if self.blocks.is_some() {
            return Ok(None);
        }
        let length = u32::from_le_bytes(self.array()?) as usize;
        if length == 0 {
            self.footer()?;
            return Ok(None);
        }
        if length > MAX_RECORD || self.records >= MAX_ENTRIES {
            return Err(Damage::Nonsense("a record or their number is too large"));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(length, 0);
        self.input.file.read_exact(&mut buffer)?;
        self.input.take_in(&buffer);
        let record = decode(&buffer).ok_or(Damage::Nonsense("a record is malformed"))?;
        self.buffer = buffer;
        self.records += 1;
        Ok(Some(record))
    }

    /// Length of the layer's data blob, in blocks; known after the last record.
    pub(crate) fn blocks(&self) -> Option<u32> {
        self.blocks
    }

    fn footer(&mut self) -> Result<(), Damage> {
        let records = u64::from_le_bytes(self.array()?);
        let blocks = u32::from_le_bytes(self.array()?);
        let crc = self.input.crc;
        if u32::from_le_bytes(self.array()?) != crc || records != self.records {
            return Err(Damage::Nonsense("its checksum is wrong"));
        }
        self.blocks = Some(blocks);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let mut bytes = [0; N];
        self.input.file.read_exact(&mut bytes)?;
        self.input.take_in(&bytes);
        Ok(bytes)
    }
}

/// Cuts fields off a record.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn long(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        self.bytes(length).map(<[u8]>::to_vec)
    }
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let mut fields = Fields(bytes);
    let [kind] = fields.array()?;
    let mode = u16::from_le_bytes(fields.array()?);
    let uid = u32::from_le_bytes(fields.array()?);
    let gid = u32::from_le_bytes(fields.array()?);
    let seconds = i64::from_le_bytes(fields.array()?);
    let nanoseconds = u32::from_le_bytes(fields.array()?);
    let a = u64::from_le_bytes(fields.array()?);
    let b = u32::from_le_bytes(fields.array()?);
    let path = fields.long()?;
    let link = fields.long()?;
    let change = match kind {
        1 => Change::Directory,
        2 => Change::File { size: a, block: b },
        3 => Change::Symlink(link),
        4 => Change::HardLink(link),
        5 => Change::CharDevice(b),
        6 => Change::BlockDevice(b),
        7 => Change::Fifo,
        8 => Change::Whiteout,
        9 => Change::Opaque,
        _ => return None,
    };
    let [count] = fields.array()?;
    let mut xattrs = Vec::with_capacity(count.into());
    for _ in 0..count {
        let [length] = fields.array()?;
        let name = fields.bytes(length.into())?.to_vec();
        xattrs.push((name, fields.long()?));
    }
    let mtime = Timestamp {
        seconds,
        nanoseconds,
    };
    fields.0.is_empty().then_some(Record {
        path,
        change,
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    })
}

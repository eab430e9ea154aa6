//! From a layer's blob, as it arrives, to its data blob and its index. One pass, no copy.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::decompress::Decompressor;
use super::index::{Change, IndexWriter, Record};
use super::recipe::Recorder;
use super::{DATA, INDEX, RECIPE, path};
use crate::image::digest::{Digest, Hasher};
use crate::image::limits::{
    BLOCK_BYTES, MAX_ENTRIES, MAX_INDEX_BYTES, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_XATTR_BYTES,
    MAX_XATTRS,
};
use crate::image::tar::{Entry, EntryKind, Reader, TarError};

const ARCHIVE_BUFFER: usize = 256 << 10;
const DATA_BUFFER: usize = 1 << 20;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs left in archives beside whiteouts.
const AUFS: &[u8] = b".wh..wh.";

/// What a layer may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IngestLimits {
    /// The archive uncompressed, and the layer's files with their holes, in bytes.
    pub(crate) unpacked_bytes: u64,
}

impl IngestLimits {
    /// Never more than chunk-based files and 32-bit block numbers can address with room to spare.
    const MAX_BYTES: u64 = 4 << 40;

    /// From the configuration's unit.
    pub(crate) fn from_mib(mib: u64) -> Self {
        Self {
            unpacked_bytes: mib.saturating_mul(1 << 20).min(Self::MAX_BYTES),
        }
    }
}

/// A layer that was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ingested {
    /// Digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Length of the data blob, in blocks.
    pub(crate) blocks: u32,
    /// Length of the archive, in bytes.
    pub(crate) unpacked_bytes: u64,
}

/// Why a layer was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    /// The archive is malformed, or cannot be decompressed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry's name cannot be used.
    #[error("the entry {path:?} is refused: {reason}")]
    Path {
        /// The beginning of the name.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// An entry's metadata cannot be used.
    #[error("the entry {path:?} has {reason}")]
    Entry {
        /// Its name.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The archive is larger than the configuration allows.
    #[error("more than {0} bytes unpacked (max_layer_mib)")]
    TooLarge(u64),
    /// The archive has more entries, or longer ones, than any honest one.
    #[error("too many entries: the limit is {MAX_ENTRIES}, and {MAX_INDEX_BYTES} bytes")]
    TooMany,
    /// The store cannot be written.
    #[error("writing the layer")]
    Write(#[source] io::Error),
}

/// Inside an [`io::Error`]: the archive went over its limit.
#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct OverLimit(u64);

/// Reads the layer's blob from `input` and makes the layer in `directory`, which is empty. All
/// files are durable when it returns. What `input` fails with comes back inside
/// [`LayerError::Tar`]. Reads `input` to its end, so that whoever checks its digest has seen all.
///
/// # Errors
/// `directory` then holds an unfinished layer.
pub(crate) fn ingest(
    input: impl Read,
    directory: &Path,
    limits: IngestLimits,
) -> Result<Ingested, LayerError> {
    let archive = Archive {
        input: Decompressor::new(input).map_err(TarError::Io)?,
        hasher: Hasher::default(),
        bytes: 0,
        limit: limits.unpacked_bytes,
    };
    let archive = BufReader::with_capacity(ARCHIVE_BUFFER, archive);
    let recorder = create(directory, RECIPE).and_then(|file| Recorder::new(archive, file));
    let mut tar = Reader::new(recorder.map_err(LayerError::Write)?);
    let mut layer = LayerWriter {
        index: create(directory, INDEX)
            .and_then(IndexWriter::new)
            .map_err(LayerError::Write)?,
        data: DataBlob::new(create(directory, DATA).map_err(LayerError::Write)?),
        limit: limits.unpacked_bytes,
    };
    loop {
        match tar.next_entry() {
            Ok(Some(entry)) => {
                layer.entry(entry, &mut tar)?;
                tar.input_mut().check().map_err(LayerError::Write)?;
            }
            Ok(None) => break,
            Err(error) => return Err(from_tar(error)),
        }
    }
    let mut rest = tar.into_inner();
    drain(&mut rest)?;
    let archive = rest.finish().map_err(LayerError::Write)?;
    let (diff_id, unpacked_bytes) = (archive.hasher.finish(), archive.bytes);
    drain(&mut archive.input.into_inner())?;
    let blocks = layer.finish().map_err(LayerError::Write)?;
    Ok(Ingested {
        diff_id,
        blocks,
        unpacked_bytes,
    })
}

fn create(directory: &Path, name: &str) -> io::Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .open(directory.join(name))
}

fn drain(input: &mut impl Read) -> Result<(), LayerError> {
    io::copy(input, &mut io::sink()).map_err(|error| from_tar(TarError::Io(error)))?;
    Ok(())
}

/// Finds the limit again that lies inside an error of the input.
fn from_tar(error: TarError) -> LayerError {
    if let TarError::Io(io) = &error
        && let Some(OverLimit(limit)) = io.get_ref().and_then(|inner| inner.downcast_ref())
    {
        return LayerError::TooLarge(*limit);
    }
    LayerError::Tar(error)
}

/// The uncompressed archive: counted, limited and summed up on its way.
struct Archive<R: Read> {
    input: Decompressor<R>,
    hasher: Hasher,
    bytes: u64,
    limit: u64,
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.bytes += length as u64;
        if self.bytes > self.limit {
            return Err(io::Error::other(OverLimit(self.limit)));
        }
        Ok(length)
    }
}

/// The two files of a layer that its entries go to.
struct LayerWriter {
    index: IndexWriter,
    data: DataBlob,
    limit: u64,
}

impl LayerWriter {
    fn entry<R: Read>(
        &mut self,
        entry: Entry,
        tar: &mut Reader<Recorder<R>>,
    ) -> Result<(), LayerError> {
        if self.index.records() >= MAX_ENTRIES || self.index.bytes() >= MAX_INDEX_BYTES {
            return Err(LayerError::TooMany);
        }
        let path = path::normalise(&entry.path)?;
        let (path, change) = match whiteout(&path) {
            Some(None) => return Ok(()),
            Some(Some(whiteout)) => whiteout,
            None => {
                let change = self.change(&entry, tar)?;
                (path, change)
            }
        };
        let Entry {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
            ..
        } = entry;
        // Linux has no other mode for them, whatever an archive says.
        let mode = match change {
            Change::Symlink(_) => 0o777,
            _ => mode,
        };
        let mut record = Record {
            path,
            change,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        };
        check_xattrs(&mut record)?;
        self.index.push(&record).map_err(LayerError::Write)
    }

    fn change<R: Read>(
        &mut self,
        entry: &Entry,
        tar: &mut Reader<Recorder<R>>,
    ) -> Result<Change, LayerError> {
        Ok(match entry.kind {
            EntryKind::Directory => Change::Directory,
            EntryKind::File => {
                let block = self.data.block();
                self.file(entry, tar)?;
                Change::File {
                    size: entry.size,
                    block,
                }
            }
            EntryKind::Symlink => {
                if entry.link.is_empty() || entry.link.len() > MAX_PATH_BYTES {
                    return Err(refuse(entry, "an empty or overlong link target"));
                }
                Change::Symlink(entry.link.clone())
            }
            EntryKind::HardLink => Change::HardLink(path::normalise(&entry.link)?),
            EntryKind::CharDevice => Change::CharDevice(device_number(entry)?),
            EntryKind::BlockDevice => Change::BlockDevice(device_number(entry)?),
            EntryKind::Fifo => Change::Fifo,
        })
    }

    /// Appends a regular file's data.
    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        tar: &mut Reader<Recorder<R>>,
    ) -> Result<(), LayerError> {
        // Holes cost nothing here, but they are read like anything else later.
        if self.data.bytes.saturating_add(entry.size) > self.limit {
            return Err(LayerError::TooLarge(self.limit));
        }
        let mut at = 0;
        for segment in entry.segments.as_deref().unwrap_or_default() {
            self.data
                .skip(segment.offset - at)
                .map_err(LayerError::Write)?;
            self.copy(tar, segment.length)?;
            at = segment.offset + segment.length;
        }
        match entry.segments {
            Some(_) => self.data.skip(entry.size - at).map_err(LayerError::Write)?,
            None => self.copy(tar, entry.size)?,
        }
        self.data.align().map_err(LayerError::Write)
    }

    fn copy<R: Read>(
        &mut self,
        tar: &mut Reader<Recorder<R>>,
        mut length: u64,
    ) -> Result<(), LayerError> {
        while length > 0 {
            let data = tar.data().map_err(from_tar)?;
            let wanted = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(data.len());
            if wanted == 0 {
                return Err(LayerError::Tar(TarError::Truncated));
            }
            let stored_at = self.data.bytes;
            self.data
                .append(&data[..wanted])
                .map_err(LayerError::Write)?;
            tar.input_mut().stored_at(stored_at);
            tar.consume(wanted);
            length -= wanted as u64;
        }
        Ok(())
    }

    fn finish(self) -> io::Result<u32> {
        let blocks = self.data.finish()?;
        self.index.finish(blocks)?;
        Ok(blocks)
    }
}

/// What a whiteout's name means: the change and the path it concerns; `Some(None)` for what aufs
/// left behind and nobody needs; `None` if the path is not a whiteout's.
#[expect(
    clippy::option_option,
    reason = "three answers, each with its own meaning"
)]
fn whiteout(path: &[u8]) -> Option<Option<(Vec<u8>, Change)>> {
    let (directory, name) = path::split(path)?;
    let hidden = name.strip_prefix(WHITEOUT)?;
    Some(if name == OPAQUE {
        Some((directory.to_vec(), Change::Opaque))
    } else if name.starts_with(AUFS) || hidden.is_empty() || matches!(hidden, b"." | b"..") {
        None
    } else if directory.is_empty() {
        Some((hidden.to_vec(), Change::Whiteout))
    } else {
        Some(([directory, b"/", hidden].concat(), Change::Whiteout))
    })
}

/// Drops the attributes that no runtime sets from an image, and refuses what no filesystem holds.
///
/// `trusted.` would let an image steer the overlay filesystem that is mounted above it; containerd
/// leaves it out as well. Namespaces that Linux does not know cannot be set anywhere.
fn check_xattrs(record: &mut Record) -> Result<(), LayerError> {
    record.xattrs.retain(|(name, _)| {
        name.starts_with(b"user.")
            || name.starts_with(b"security.")
            || matches!(
                name.as_slice(),
                b"system.posix_acl_access" | b"system.posix_acl_default"
            )
    });
    let total: usize = record
        .xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let names_fit = record
        .xattrs
        .iter()
        .all(|(name, _)| name.len() <= MAX_NAME_BYTES && !name.contains(&0));
    if record.xattrs.len() > MAX_XATTRS || total >= MAX_XATTR_BYTES || !names_fit {
        return Err(LayerError::Entry {
            path: record.path.escape_ascii().to_string(),
            reason: "too many or too large extended attributes",
        });
    }
    Ok(())
}

/// The kernel's `new_encode_dev`: 12 bits of major, 20 of minor number.
fn device_number(entry: &Entry) -> Result<u32, LayerError> {
    let (major, minor) = entry.device;
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(refuse(entry, "a device number that Linux cannot have"));
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

fn refuse(entry: &Entry, reason: &'static str) -> LayerError {
    LayerError::Entry {
        path: entry.path.escape_ascii().to_string(),
        reason,
    }
}

/// The data blob being written.
struct DataBlob {
    output: BufWriter<File>,
    /// Its length so far.
    bytes: u64,
}

impl DataBlob {
    fn new(file: File) -> Self {
        Self {
            output: BufWriter::with_capacity(DATA_BUFFER, file),
            bytes: 0,
        }
    }

    /// Where the next file starts, in blocks. `u32` holds 16 TiB; [`DataBlob::finish`] checks.
    fn block(&self) -> u32 {
        u32::try_from(self.bytes / BLOCK_BYTES).unwrap_or(u32::MAX)
    }

    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.bytes += data.len() as u64;
        self.output.write_all(data)
    }

    /// Leaves a hole, or writes one that is not worth a system call.
    fn skip(&mut self, length: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        if let Some(zeros) = usize::try_from(length)
            .ok()
            .and_then(|length| ZEROS.get(..length))
        {
            return self.append(zeros);
        }
        self.bytes += length;
        self.output.seek(SeekFrom::Start(self.bytes)).map(drop)
    }

    fn align(&mut self) -> io::Result<()> {
        self.skip(self.bytes.next_multiple_of(BLOCK_BYTES) - self.bytes)
    }

    /// Makes the blob durable; its length in blocks.
    fn finish(self) -> io::Result<u32> {
        let file = self
            .output
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        // A hole at the end is not there yet.
        file.set_len(self.bytes)?;
        file.sync_data()?;
        u32::try_from(self.bytes / BLOCK_BYTES).map_err(io::Error::other)
    }
}

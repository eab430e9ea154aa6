//! Reading tar archives that nobody vouches for.
//!
//! One pass over a [`BufRead`], one entry at a time, memory bounded by [`MAX_EXTENSION`] whatever
//! the archive claims. Understood: V7, ustar, GNU (long names, sparse files, base-256 numbers) and
//! PAX (POSIX.1-2008 `pax`: paths, ids, sizes and times beyond ustar's, `SCHILY.xattr.*`, and GNU's
//! three sparse formats). What the fields mean in doubtful cases follows Go's `archive/tar`, because
//! that is what the builders and runtimes that made today's images agree on: global headers are
//! ignored, links and devices carry no data, an archive may end without its two zero blocks.
//!
//! - `header.rs`: one 512-byte block.
//! - `pax.rs`: the records of an extended header.
//! - `sparse.rs`: where a sparse file's data goes.
//! - `write.rs`: headers of archives of our own.
//!
//! Called by `layer::ingest`, on a blocking thread.

mod header;
mod pax;
mod sparse;
mod write;

use std::io::{self, BufRead, Read};

use self::header::{BLOCK, Header, HeaderKind};
use self::pax::Extensions;
pub(crate) use self::sparse::Segment;
pub(crate) use self::write::{END, file_header, padding};

/// The most that the data of an extended header, a long name or a sparse map may take.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The input failed, or what is under it (decompression, a limit).
    #[error("reading the archive")]
    Io(#[from] io::Error),
    /// The input ends inside an entry.
    #[error("the archive is truncated")]
    Truncated,
    /// A header's checksum is wrong.
    #[error("the header at byte {0} has a wrong checksum")]
    Checksum(u64),
    /// A field makes no sense.
    #[error("malformed archive: {0}")]
    Malformed(&'static str),
    /// A kind of entry that no image has.
    #[error("entries of type {:?} are not supported", char::from(*.0))]
    Unsupported(u8),
    /// An extended header is larger than any honest one.
    #[error("an extended header is larger than {MAX_EXTENSION} bytes")]
    TooLarge,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file; its data is read with [`Reader::data`].
    File,
    /// Another name for the entry `link`.
    HardLink,
    /// A symbolic link to `link`.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A time as POSIX has it, before and after the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Timestamp {
    /// Seconds since the epoch, rounded down.
    pub(crate) seconds: i64,
    /// 0 to 999,999,999.
    pub(crate) nanoseconds: u32,
}

/// One entry's metadata, as the archive gives it: paths are not normalised yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it is.
    pub(crate) kind: EntryKind,
    /// Its name, any bytes but NUL.
    pub(crate) path: Vec<u8>,
    /// Target of a hard or symbolic link.
    pub(crate) link: Vec<u8>,
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last modification.
    pub(crate) mtime: Timestamp,
    /// Length of the file, holes included.
    pub(crate) size: u64,
    /// Where the data goes if the file has holes; `None` if it has none.
    pub(crate) segments: Option<Vec<Segment>>,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes, names with their namespace, sorted by name, each once.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive being read.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    /// Bytes read so far.
    position: u64,
    /// Data of the present entry that was not read yet.
    data_left: u64,
    /// Zeros after that data, up to the next block.
    padding: u64,
}

impl<R: BufRead> Reader<R> {
    /// Nothing is read before the first [`Reader::next_entry`].
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            position: 0,
            data_left: 0,
            padding: 0,
        }
    }

    /// The next entry, or `None` at the archive's end. Data of the present one that was not read
    /// is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip(self.data_left + self.padding)?;
        (self.data_left, self.padding) = (0, 0);
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            match header.kind() {
                HeaderKind::Extended => {
                    let records = self.read_extension(&header)?;
                    extensions.parse_pax(&records)?;
                }
                HeaderKind::Global => {
                    self.read_extension(&header)?;
                }
                HeaderKind::LongName => {
                    extensions.long_name = Some(until_nul(self.read_extension(&header)?));
                }
                HeaderKind::LongLink => {
                    extensions.long_link = Some(until_nul(self.read_extension(&header)?));
                }
                HeaderKind::Entry(kind) => return self.entry(&header, kind, extensions).map(Some),
                HeaderKind::SparseFile => {
                    return self.gnu_sparse_entry(&header, extensions).map(Some);
                }
                HeaderKind::Unknown(kind) => return Err(TarError::Unsupported(kind)),
            }
        }
    }

    /// The next part of the present file's data, empty at its end. For a sparse file that is what
    /// its segments hold, one after the other.
    pub(crate) fn data(&mut self) -> Result<&[u8], TarError> {
        if self.data_left == 0 {
            return Ok(&[]);
        }
        let available = self.input.fill_buf()?;
        if available.is_empty() {
            return Err(TarError::Truncated);
        }
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX);
        Ok(&available[..available.len().min(wanted)])
    }

    /// Where in the input the present entry's data goes on.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Takes `length` bytes of what [`Reader::data`] has shown.
    pub(crate) fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.position += length as u64;
        self.data_left -= length as u64;
    }

    /// What is below, to be told about what is consumed next.
    pub(crate) fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// What is left of the input, once the archive has ended.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryKind,
        mut extensions: Extensions,
    ) -> Result<Entry, TarError> {
        // Only files have data: whatever size a link or a directory claims, nothing follows it.
        let stored = match kind {
            EntryKind::File => extensions.size.map_or_else(|| header.size(), Ok)?,
            _ => 0,
        };
        self.expect_data(stored)?;
        let mut entry = extensions.entry(header, kind)?;
        entry.size = stored;
        if kind == EntryKind::File {
            if let Some(map) = extensions.sparse.take() {
                let (size, segments) = map.resolve(self)?;
                sparse::check(&segments, size, self.data_left)?;
                entry.size = size;
                entry.segments = Some(segments);
            } else if entry.path.ends_with(b"/") {
                // V7 has no type for directories.
                entry.kind = EntryKind::Directory;
            }
        }
        Ok(entry)
    }

    fn gnu_sparse_entry(
        &mut self,
        header: &Header,
        mut extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let (size, segments) = sparse::read_gnu(self, header)?;
        let stored = extensions.size.map_or_else(|| header.size(), Ok)?;
        self.expect_data(stored)?;
        sparse::check(&segments, size, stored)?;
        let mut entry = extensions.entry(header, EntryKind::File)?;
        entry.size = size;
        entry.segments = Some(segments);
        Ok(entry)
    }

    /// Announces the data of the entry whose header was just read.
    fn expect_data(&mut self, length: u64) -> Result<(), TarError> {
        if i64::try_from(length).is_err() {
            return Err(TarError::Malformed("a size is out of range"));
        }
        self.data_left = length;
        self.padding = length.next_multiple_of(BLOCK as u64) - length;
        Ok(())
    }

    /// The data of an extended header, whole.
    fn read_extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let length = header.size()?;
        if length > MAX_EXTENSION {
            return Err(TarError::TooLarge);
        }
        let mut data = Vec::new();
        (&mut self.input).take(length).read_to_end(&mut data)?;
        if data.len() as u64 != length {
            return Err(TarError::Truncated);
        }
        self.position += length;
        self.skip(length.next_multiple_of(BLOCK as u64) - length)?;
        Ok(data)
    }

    /// One header, or `None` at the end: of the input, or two blocks of zeros.
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        for _ in 0..2 {
            let at = self.position;
            let Some(block) = self.read_block()? else {
                return Ok(None);
            };
            if block.iter().any(|&byte| byte != 0) {
                return Header::new(block).ok_or(TarError::Checksum(at)).map(Some);
            }
        }
        Ok(None)
    }

    /// One block, or `None` if the input has ended.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(truncated)?;
        self.position += BLOCK as u64;
        Ok(Some(block))
    }

    fn skip(&mut self, mut length: u64) -> Result<(), TarError> {
        while length > 0 {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                return Err(TarError::Truncated);
            }
            let step = available.min(usize::try_from(length).unwrap_or(usize::MAX));
            self.input.consume(step);
            self.position += step as u64;
            length -= step as u64;
        }
        Ok(())
    }
}

fn truncated(error: io::Error) -> TarError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Truncated,
        _ => TarError::Io(error),
    }
}

/// GNU's long names end with a NUL.
fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|&byte| byte == 0) {
        name.truncate(end);
    }
    name
}

#[cfg(test)]
mod tests;

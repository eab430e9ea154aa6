//! One header block.
//!
//! ```text
//! offset  length  field            offset  length  field
//!      0     100  name                257       6  magic: "ustar\0" or "ustar " (GNU)
//!    100       8  mode                263       2  version
//!    108       8  uid                 265      32  uname      (unused: ids are numeric here)
//!    116       8  gid                 297      32  gname
//!    124      12  size                329       8  devmajor
//!    136      12  mtime               337       8  devminor
//!    148       8  chksum              345     155  prefix (ustar)
//!    156       1  typeflag            386      96  4 sparse segments (GNU)
//!    157     100  linkname            482       1  isextended (GNU); 483 realsize, 12 (GNU)
//! ```
//!
//! POSIX.1-2008 `pax`, "ustar Interchange Format"; the GNU tar manual, "Basic Tar Format".

use std::ops::Range;

use super::{EntryKind, TarError};

/// Size of a header, and what data is padded to.
pub(super) const BLOCK: usize = 512;

/// What a header introduces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderKind {
    /// An entry of the archive.
    Entry(EntryKind),
    /// An entry with holes, in GNU's old format.
    SparseFile,
    /// PAX records for the next entry.
    Extended,
    /// PAX records for all entries that follow.
    Global,
    /// The next entry's name (GNU).
    LongName,
    /// The next entry's link target (GNU).
    LongLink,
    /// Anything else.
    Unknown(u8),
}

/// A header whose checksum is right.
#[derive(Debug)]
pub(super) struct Header([u8; BLOCK]);

impl Header {
    const NAME: Range<usize> = 0..100;
    const MODE: Range<usize> = 100..108;
    const UID: Range<usize> = 108..116;
    const GID: Range<usize> = 116..124;
    const SIZE: Range<usize> = 124..136;
    const MTIME: Range<usize> = 136..148;
    const CHECKSUM: Range<usize> = 148..156;
    const TYPE: usize = 156;
    const LINK: Range<usize> = 157..257;
    const MAGIC: Range<usize> = 257..263;
    const DEVICE_MAJOR: Range<usize> = 329..337;
    const DEVICE_MINOR: Range<usize> = 337..345;
    const PREFIX: Range<usize> = 345..500;
    /// First of four GNU sparse segments, 24 bytes each.
    const SPARSE: usize = 386;
    const SPARSE_EXTENDED: usize = 482;
    const REAL_SIZE: Range<usize> = 483..495;

    /// `None` if the checksum is wrong.
    pub(super) fn new(block: [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        let stated = number(&header.0[Self::CHECKSUM])?;
        // The checksum is taken with its own field blank. Old implementations summed signed bytes.
        let bytes = (0..BLOCK).map(|at| {
            if Self::CHECKSUM.contains(&at) {
                b' '
            } else {
                header.0[at]
            }
        });
        let unsigned: i64 = bytes.clone().map(i64::from).sum();
        let signed: i64 = bytes.map(|byte| i64::from(byte.cast_signed())).sum();
        (stated == unsigned || stated == signed).then_some(header)
    }

    pub(super) fn kind(&self) -> HeaderKind {
        match self.0[Self::TYPE] {
            0 | b'0' | b'7' => HeaderKind::Entry(EntryKind::File),
            b'1' => HeaderKind::Entry(EntryKind::HardLink),
            b'2' => HeaderKind::Entry(EntryKind::Symlink),
            b'3' => HeaderKind::Entry(EntryKind::CharDevice),
            b'4' => HeaderKind::Entry(EntryKind::BlockDevice),
            b'5' => HeaderKind::Entry(EntryKind::Directory),
            b'6' => HeaderKind::Entry(EntryKind::Fifo),
            b'S' => HeaderKind::SparseFile,
            b'x' => HeaderKind::Extended,
            b'g' => HeaderKind::Global,
            b'L' => HeaderKind::LongName,
            b'K' => HeaderKind::LongLink,
            other => HeaderKind::Unknown(other),
        }
    }

    /// The name, with ustar's prefix before it.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = string(&self.0[Self::NAME]);
        // GNU keeps other things where ustar has the prefix.
        let prefix = match &self.0[Self::MAGIC] {
            b"ustar\0" => string(&self.0[Self::PREFIX]),
            _ => &[],
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        string(&self.0[Self::LINK]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16, TarError> {
        let mode = field(&self.0[Self::MODE], "a mode is not a number")?;
        // Some writers put the file type's bits here too.
        u16::try_from(mode & 0o7777)
            .map_err(|_negative| TarError::Malformed("a mode is out of range"))
    }

    pub(super) fn uid(&self) -> Result<u32, TarError> {
        id(&self.0[Self::UID])
    }

    pub(super) fn gid(&self) -> Result<u32, TarError> {
        id(&self.0[Self::GID])
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        unsigned(&self.0[Self::SIZE], "a size is not a number")
    }

    /// Seconds since the epoch.
    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        field(&self.0[Self::MTIME], "a time is not a number")
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        let part = |range: Range<usize>| {
            let value = unsigned(&self.0[range], "a device number is not a number")?;
            u32::try_from(value)
                .map_err(|_too_large| TarError::Malformed("a device number is out of range"))
        };
        // V7 has no such fields.
        if self.0[Self::MAGIC].starts_with(b"ustar") {
            Ok((part(Self::DEVICE_MAJOR)?, part(Self::DEVICE_MINOR)?))
        } else {
            Ok((0, 0))
        }
    }

    /// Length of a GNU sparse file, holes included.
    pub(super) fn real_size(&self) -> Result<u64, TarError> {
        unsigned(&self.0[Self::REAL_SIZE], "a size is not a number")
    }

    /// The first four segments of a GNU sparse file, and whether more follow in blocks of their own.
    pub(super) fn sparse_segments(&self) -> (&[u8], bool) {
        (
            &self.0[Self::SPARSE..Self::SPARSE + 4 * 24],
            self.0[Self::SPARSE_EXTENDED] != 0,
        )
    }
}

/// A field of text: up to its first NUL or its end.
fn string(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

fn field(bytes: &[u8], problem: &'static str) -> Result<i64, TarError> {
    number(bytes).ok_or(TarError::Malformed(problem))
}

/// A number that cannot be negative.
pub(super) fn unsigned(bytes: &[u8], problem: &'static str) -> Result<u64, TarError> {
    number(bytes)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or(TarError::Malformed(problem))
}

fn id(bytes: &[u8]) -> Result<u32, TarError> {
    let value = unsigned(bytes, "an owner is not a number")?;
    u32::try_from(value).map_err(|_too_large| TarError::Malformed("an owner is out of range"))
}

/// Octal digits between blanks, or, with the top bit set, a big-endian number in two's complement
/// (GNU's base-256).
fn number(bytes: &[u8]) -> Option<i64> {
    let (&first, rest) = bytes.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let top = if negative {
            i64::from(first.cast_signed())
        } else {
            i64::from(first & 0x7f)
        };
        return rest.iter().try_fold(top, |value, &byte| {
            value.checked_mul(256)?.checked_add(i64::from(byte))
        });
    }
    let text = bytes.trim_ascii_start();
    let digits = text.split(|byte| matches!(byte, 0 | b' ')).next()?;
    digits.iter().try_fold(0_i64, |value, &digit| {
        matches!(digit, b'0'..=b'7')
            .then(|| value.checked_mul(8)?.checked_add(i64::from(digit - b'0')))?
    })
}

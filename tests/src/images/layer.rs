//! One layer: a tar stream with everything that images contain in the wild.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// Modification time of an entry that names none: the same bytes on every build.
const MTIME: u64 = 1_700_000_000;

/// How a layer is stored. The media types are those of the OCI image specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `application/vnd.oci.image.layer.v1.tar`
    None,
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    Gzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    Zstd,
}

impl Compression {
    /// The layer's media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A file, directory or other thing in a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    path: PathBuf,
    kind: Kind,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    /// PAX records that go before the entry.
    pax: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum Kind {
    File(Vec<u8>),
    Directory,
    Symlink(PathBuf),
    HardLink(PathBuf),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

impl Entry {
    fn new(path: impl AsRef<OsStr>, kind: Kind, mode: u32) -> Self {
        let path = PathBuf::from(path.as_ref());
        Self {
            path,
            kind,
            mode,
            owner: (0, 0),
            mtime: MTIME,
            pax: Vec::new(),
        }
    }

    /// A regular file, mode 0644.
    #[must_use]
    pub fn file(path: impl AsRef<OsStr>, data: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(data.into()), 0o644)
    }

    /// A directory, mode 0755.
    #[must_use]
    pub fn directory(path: impl AsRef<OsStr>) -> Self {
        Self::new(path, Kind::Directory, 0o755)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(path: impl AsRef<OsStr>, target: impl Into<PathBuf>) -> Self {
        Self::new(path, Kind::Symlink(target.into()), 0o777)
    }

    /// One more name of `target`, which is a path from the root, in this layer or one below.
    #[must_use]
    pub fn hard_link(path: impl AsRef<OsStr>, target: impl Into<PathBuf>) -> Self {
        Self::new(path, Kind::HardLink(target.into()), 0o644)
    }

    /// A character device.
    #[must_use]
    pub fn character(path: impl AsRef<OsStr>, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Character(major, minor), 0o666)
    }

    /// A block device.
    #[must_use]
    pub fn block(path: impl AsRef<OsStr>, major: u32, minor: u32) -> Self {
        Self::new(path, Kind::Block(major, minor), 0o660)
    }

    /// A named pipe.
    #[must_use]
    pub fn fifo(path: impl AsRef<OsStr>) -> Self {
        Self::new(path, Kind::Fifo, 0o644)
    }

    /// Removes a name that a lower layer has (OCI image specification, "Whiteouts").
    #[must_use]
    pub fn whiteout(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let mut name = b".wh.".to_vec();
        name.extend_from_slice(path.file_name().unwrap_or_default().as_bytes());
        Self::file(path.with_file_name(OsStr::from_bytes(&name)), [])
    }

    /// Hides everything that lower layers have in this directory.
    #[must_use]
    pub fn opaque(directory: impl AsRef<Path>) -> Self {
        Self::file(directory.as_ref().join(".wh..wh..opq"), [])
    }

    /// Permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// User and group id.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// Modification time, seconds since the epoch.
    #[must_use]
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// Nanoseconds of the modification time, which only a PAX record can say.
    #[must_use]
    pub fn mtime_nanos(mut self, nanos: u32) -> Self {
        let value = format!("{}.{nanos:09}", self.mtime);
        self.pax.push(("mtime".to_owned(), value.into_bytes()));
        self
    }

    /// An extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.pax
            .push((format!("SCHILY.xattr.{name}"), value.into()));
        self
    }

    /// Says the path in a PAX record too, as GNU tar and BSD tar each have their own way.
    #[must_use]
    pub fn pax_path(mut self) -> Self {
        self.pax
            .push(("path".to_owned(), self.path.as_os_str().as_bytes().to_vec()));
        self
    }

    fn header(&self) -> Result<Header> {
        let mut header = Header::new_gnu();
        let kind = match &self.kind {
            Kind::File(_) => EntryType::Regular,
            Kind::Directory => EntryType::Directory,
            Kind::Symlink(_) => EntryType::Symlink,
            Kind::HardLink(_) => EntryType::Link,
            Kind::Character(..) => EntryType::Char,
            Kind::Block(..) => EntryType::Block,
            Kind::Fifo => EntryType::Fifo,
        };
        header.set_entry_type(kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.mtime);
        header.set_size(0);
        if let Kind::Character(major, minor) | Kind::Block(major, minor) = self.kind {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        Ok(header)
    }
}

/// Writes a layer into a file, and learns its digests on the way.
pub struct LayerWriter {
    tar: tar::Builder<Hashing<Encoder>>,
    compression: Compression,
}

impl std::fmt::Debug for LayerWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerWriter")
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

/// What a manifest and a configuration say about a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDigests {
    /// The layer's media type.
    pub media_type: &'static str,
    /// Digest of the file, `sha256:...`.
    pub digest: String,
    /// Length of the file in bytes.
    pub size: u64,
    /// Digest of the uncompressed tar stream.
    pub diff_id: String,
}

impl LayerWriter {
    /// Starts a layer in `file`.
    ///
    /// # Errors
    /// The encoder cannot be made.
    pub fn new(file: File, compression: Compression) -> Result<Self> {
        let file = Hashing::new(file);
        let encoder = match compression {
            Compression::None => Encoder::None(file),
            Compression::Gzip => Encoder::Gzip(flate2::write::GzEncoder::new(
                file,
                flate2::Compression::new(6),
            )),
            Compression::Zstd => Encoder::Zstd(zstd::Encoder::new(file, 3)?),
        };
        Ok(Self {
            tar: tar::Builder::new(Hashing::new(encoder)),
            compression,
        })
    }

    /// Adds one entry.
    ///
    /// # Errors
    /// Writing failed, or the entry's path cannot stand in a tar header.
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        let pax = entry
            .pax
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(pax)?;
        let mut header = entry.header()?;
        match &entry.kind {
            Kind::File(data) => {
                header.set_size(data.len() as u64);
                self.tar
                    .append_data(&mut header, &entry.path, data.as_slice())
            }
            Kind::Symlink(target) | Kind::HardLink(target) => {
                self.tar.append_link(&mut header, &entry.path, target)
            }
            _ => self.tar.append_data(&mut header, &entry.path, io::empty()),
        }
        .with_context(|| format!("adding {}", entry.path.display()))
    }

    /// Adds a regular file whose `len` bytes come from a reader.
    ///
    /// # Errors
    /// Reading or writing failed.
    pub fn add_from(&mut self, entry: &Entry, len: u64, data: impl Read) -> Result<()> {
        let mut header = entry.header()?;
        header.set_size(len);
        Ok(self.tar.append_data(&mut header, &entry.path, data)?)
    }

    /// Ends the stream and tells its digests.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(self) -> Result<LayerDigests> {
        let (encoder, diff, _) = self.tar.into_inner()?.finish();
        let file = match encoder {
            Encoder::None(file) => file,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        let (mut file, digest, size) = file.finish();
        file.flush()?;
        let media_type = self.compression.media_type();
        Ok(LayerDigests {
            media_type,
            digest,
            size,
            diff_id: diff,
        })
    }
}

enum Encoder {
    None(Hashing<File>),
    Gzip(flate2::write::GzEncoder<Hashing<File>>),
    Zstd(zstd::Encoder<'static, Hashing<File>>),
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(inner) => inner.write(bytes),
            Self::Gzip(inner) => inner.write(bytes),
            Self::Zstd(inner) => inner.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(inner) => inner.flush(),
            Self::Gzip(inner) => inner.flush(),
            Self::Zstd(inner) => inner.flush(),
        }
    }
}

/// Hashes and counts what passes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    len: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            len: 0,
        }
    }

    fn finish(self) -> (W, String, u64) {
        (
            self.inner,
            format!("sha256:{}", hex::encode(self.hash.finalize())),
            self.len,
        )
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Digest of bytes, `sha256:...`.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A whole file, with its name in the error.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

//! The FUSE protocol as it is on the wire (Linux `include/uapi/linux/fuse.h`, version 7.38):
//! numbers, and the structures that requests and replies are made of. Guest and host have the same
//! byte order (virtio 1.2 section 5.11.6.1), which is little-endian here.

use rustix::io::Errno;

/// The version that this side speaks.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 38;
/// The oldest minor version that has everything that is used here (`HANDLE_KILLPRIV_V2`).
pub(super) const MINOR_MIN: u32 = 33;

/// Length of `struct fuse_in_header`.
pub(super) const IN_HEADER_LEN: usize = 40;
/// Length of `struct fuse_out_header`.
pub(super) const OUT_HEADER_LEN: usize = 16;
/// Length of `struct fuse_write_in`, which data follow.
pub(super) const WRITE_IN_LEN: usize = 40;

/// The node that is the root of the file system.
pub(super) const ROOT_ID: u64 = 1;

/// What a request asks for (`enum fuse_opcode`).
pub(super) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
}

/// Flags of INIT: what both sides can do.
pub(super) mod init {
    pub(crate) const ASYNC_READ: u32 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub(crate) const BIG_WRITES: u32 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(crate) const ASYNC_DIO: u32 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(crate) const MAX_PAGES: u32 = 1 << 22;
    pub(crate) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    /// There is a second word of flags.
    pub(crate) const INIT_EXT: u32 = 1 << 30;
    /// In the second word: mounts may show files with other ids. Only what makes a file then tells whose
    /// it is to be; every other request's ids are -1.
    pub(crate) const ALLOW_IDMAP: u32 = 1 << (40 - 32);
}

/// `fuse_setattr_in.valid`: what SETATTR changes.
pub(super) mod valid {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_open_in.open_flags`: truncating takes the set-user-id and set-group-id bits away.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `fuse_write_in.write_flags`: writing does.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fuse_fsync_in.fsync_flags`: data alone.
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;

/// Takes numbers and names off the front of a request's arguments.
#[derive(Debug, Clone)]
pub(super) struct Arguments<'a> {
    left: &'a [u8],
}

impl<'a> Arguments<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (front, left) = self.left.split_first_chunk().ok_or(Errno::INVAL)?;
        self.left = left;
        Ok(*front)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_le_bytes)
    }

    /// Bytes up to a NUL, which is taken as well.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.left.iter().position(|byte| *byte == 0);
        let (string, left) = self.left.split_at(end.ok_or(Errno::INVAL)?);
        self.left = &left[1..];
        Ok(string)
    }

    /// The next `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (bytes, left) = self.left.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.left = left;
        Ok(bytes)
    }
}

/// A reply's bytes in the making.
#[derive(Debug, Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

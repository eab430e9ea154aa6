//! A guest's kernel that speaks FUSE with a server.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tempfile::TempDir;
use vm_memory::VolatileSlice;

use crate::virtio::chain::Chain;
use crate::virtio::fs::Server;
use crate::virtio::fs::request::Request;
use crate::virtio::fs::wire::{Bytes, opcode};
use crate::virtio::segments::Segments;

pub(super) const ROOT: u64 = 1;
/// Where `struct fuse_attr` is in an answer to LOOKUP, and the fields in it.
pub(super) const ENTRY_ATTR: usize = 40;
pub(super) const ATTR_SIZE: usize = 8;
pub(super) const ATTR_MODE: usize = 60;
pub(super) const ATTR_NLINK: usize = 64;
pub(super) const ATTR_UID: usize = 68;

/// A guest's kernel with a server whose volume "data" is a fresh directory.
pub(super) struct Guest {
    pub(super) server: Arc<Server>,
    pub(super) dir: TempDir,
    pub(super) uid: u32,
    pub(super) thread: u32,
}

pub(super) fn open_path(path: &Path) -> OwnedFd {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(super) fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

pub(super) fn args() -> Bytes {
    Bytes::default()
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::with(true)
    }

    pub(super) fn with(writable: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Arc::new(Server::new().unwrap());
        server
            .add_volume("data", open_path(dir.path()), writable)
            .unwrap();
        Self {
            server,
            dir,
            uid: 0,
            thread: 7,
        }
    }

    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// What the server answers, its header taken off.
    pub(super) fn call_sized(
        &self,
        opcode: u32,
        node: u64,
        arguments: &[u8],
        room: usize,
    ) -> Result<Vec<u8>, Errno> {
        let length = u32::try_from(40 + arguments.len()).unwrap();
        let mut message = args()
            .u32(length)
            .u32(opcode)
            .u64(77)
            .u64(node)
            .u32(self.uid)
            .u32(self.uid)
            .u32(self.thread)
            .u32(0)
            .raw(arguments)
            .0;
        let mut answer = vec![0; 16 + room];
        let mut chain = Chain {
            head: 0,
            readable: Segments::default(),
            writable: Segments::default(),
        };
        chain.readable.push(VolatileSlice::from(&mut message[..]));
        chain.writable.push(VolatileSlice::from(&mut answer[..]));
        let mut request = Request::parse(chain).unwrap();
        let result = self.server.serve(&mut request);
        let written = usize::try_from(request.answer(result)).unwrap();
        if written == 0 {
            return Ok(Vec::new());
        }
        assert_eq!(u32_at(&answer, 0), u32::try_from(written).unwrap());
        assert_eq!(u64_at(&answer, 8), 77);
        match u32_at(&answer, 4).cast_signed() {
            0 => Ok(answer[16..written].to_vec()),
            error => Err(Errno::from_raw_os_error(-error)),
        }
    }

    pub(super) fn call(
        &self,
        opcode: u32,
        node: u64,
        Bytes(arguments): Bytes,
    ) -> Result<Vec<u8>, Errno> {
        self.call_sized(opcode, node, &arguments, 4096)
    }

    pub(super) fn lookup(&self, parent: u64, name: &str) -> Result<Vec<u8>, Errno> {
        self.call(opcode::LOOKUP, parent, args().raw(&string(name)))
    }

    /// The node of a path below the root.
    pub(super) fn walk(&self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |parent, name| {
            u64_at(&self.lookup(parent, name).unwrap(), 0)
        })
    }

    pub(super) fn volume(&self) -> u64 {
        self.walk("data")
    }

    pub(super) fn open(&self, node: u64, flags: i32) -> Result<u64, Errno> {
        let arguments = args().u32(flags.cast_unsigned()).u32(0);
        let answer = self.call(opcode::OPEN, node, arguments)?;
        Ok(u64_at(&answer, 0))
    }

    pub(super) fn create(&self, parent: u64, name: &str, mode: u32) -> Result<(u64, u64), Errno> {
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).cast_unsigned();
        let arguments = args().u32(flags).u32(mode).u64(0).raw(&string(name));
        let answer = self.call(opcode::CREATE, parent, arguments)?;
        Ok((u64_at(&answer, 0), u64_at(&answer, 128)))
    }

    pub(super) fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let arguments = args()
            .u64(handle)
            .u64(offset)
            .u32(u32::try_from(data.len()).unwrap())
            .u32(0)
            .u64(0)
            .u64(0)
            .raw(data);
        Ok(u32_at(&self.call(opcode::WRITE, 0, arguments)?, 0))
    }

    pub(super) fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let arguments = args().u64(handle).u64(offset).u32(size).raw(&[0; 20]);
        self.call(opcode::READ, 0, arguments)
    }

    pub(super) fn setattr(
        &self,
        node: u64,
        bits: u32,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<Vec<u8>, Errno> {
        let mut arguments = [0; 88];
        arguments[..4].copy_from_slice(&bits.to_le_bytes());
        change(&mut arguments);
        self.call(opcode::SETATTR, node, args().raw(&arguments))
    }

    pub(super) fn names(&self, node: u64, size: u32) -> Vec<String> {
        let handle = u64_at(&self.call(opcode::OPENDIR, node, args().u64(0)).unwrap(), 0);
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let arguments = args().u64(handle).u64(offset).u32(size).raw(&[0; 20]);
            let answer = self.call(opcode::READDIR, node, arguments).unwrap();
            if answer.is_empty() {
                self.call(opcode::RELEASEDIR, node, args().u64(handle))
                    .unwrap();
                return names;
            }
            let mut at = 0;
            while at < answer.len() {
                offset = u64_at(&answer, at + 8);
                let length = u32_at(&answer, at + 16) as usize;
                let name = &answer[at + 24..at + 24 + length];
                names.push(String::from_utf8(name.to_vec()).unwrap());
                at += (24 + length).next_multiple_of(8);
            }
        }
    }
}

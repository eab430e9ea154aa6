//! Serves requests: which function answers what.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags, Statx, openat};
use rustix::io::Errno;

use super::handles::Handles;
use super::nodes::{Node, Nodes, VolumeError};
use super::replay::Replayer;
use super::request::{Header, Reply, Request};
use super::wire::{self, Arguments, Bytes, init, opcode};

/// Most bytes of a READ or a WRITE, and in pages.
pub(super) const TRANSFER_MAX: u32 = 1 << 20;
const TRANSFER_MAX_PAGES: u16 = 256;

/// What is used if the guest has it.
const FEATURES: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2
    | init::INIT_EXT;
/// The same of the second word.
const MORE_FEATURES: u32 = init::ALLOW_IDMAP;

/// The volumes, and what the guest knows and has open of them. Shared by the device's threads and
/// the control thread.
#[derive(Debug)]
pub(crate) struct Server {
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
    replayer: Mutex<Option<Replayer>>,
    /// This process's descriptors: the way from one that only names a file to one that reads it.
    own_fds: OwnedFd,
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Without volumes.
    ///
    /// # Errors
    ///
    /// When `/proc` is not there.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            nodes: Mutex::default(),
            handles: Mutex::default(),
            replayer: Mutex::default(),
            own_fds: File::open("/proc/self/fd")?.into(),
        })
    }

    /// Lets the guest find the directory or file behind `fd`, which may be `O_PATH`, as `name`. A
    /// volume that is there stays what it is, and becomes writable if that is asked for.
    ///
    /// # Errors
    ///
    /// [`VolumeError`].
    pub(crate) fn add_volume(
        &self,
        name: &str,
        fd: OwnedFd,
        writable: bool,
    ) -> Result<(), VolumeError> {
        self.nodes().add_volume(name, fd, writable)
    }

    /// Takes a volume from the guest and closes what it has open of it. Idempotent.
    pub(crate) fn remove_volume(&self, name: &str) {
        let lost = self.nodes().remove_volume(name);
        self.handles().close_nodes(&lost);
    }

    /// Names of the volumes.
    pub(crate) fn volumes(&self) -> Vec<String> {
        self.nodes().volumes()
    }

    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        lock(&self.nodes)
    }

    pub(super) fn handles(&self) -> MutexGuard<'_, Handles> {
        lock(&self.handles)
    }

    pub(super) fn replayer(&self) -> MutexGuard<'_, Option<Replayer>> {
        lock(&self.replayer)
    }

    /// The driver starts anew, or is gone.
    pub(super) fn forget_all(&self) {
        self.replayer().take();
        self.handles().clear();
        self.nodes().forget_all();
    }

    /// Does what a request asks for.
    pub(super) fn serve(&self, request: &mut Request<'_>) -> Result<Reply, Errno> {
        let arguments = std::mem::replace(&mut request.arguments, Err(Errno::INVAL))?;
        let mut args = Arguments::new(&arguments);
        let header = request.header;
        let node = header.nodeid;
        if let Some(answer) = self.replay(header, &mut args) {
            return answer;
        }
        match header.opcode {
            opcode::INIT => self.init(&mut args),
            opcode::FORGET => self.forget(node, &mut args),
            opcode::BATCH_FORGET => self.batch_forget(&mut args),
            opcode::DESTROY => {
                self.forget_all();
                Ok(Reply::Empty)
            }
            opcode::LOOKUP => self.lookup(node, &mut args),
            opcode::GETATTR => self.getattr(node),
            opcode::SETATTR => self.setattr(node, &mut args),
            opcode::STATFS => self.statfs(node),
            opcode::SYNCFS => self.syncfs(),
            opcode::READ => self.read(&mut args, &mut request.room),
            opcode::WRITE => self.write(&mut args, &mut request.data),
            opcode::OPEN => self.open(node, &mut args),
            opcode::OPENDIR => self.opendir(node),
            opcode::READDIR => self.readdir(node, &mut args, request.room.len()),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(&mut args),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(&mut args),
            opcode::LSEEK => self.lseek(&mut args),
            opcode::FALLOCATE => self.fallocate(&mut args),
            opcode::COPY_FILE_RANGE => self.copy_file_range(&mut args),
            opcode::READLINK => self.readlink(node),
            opcode::GETXATTR => self.getxattr(node, &mut args),
            opcode::LISTXATTR => self.listxattr(node, &mut args),
            opcode::SETXATTR if node == wire::ROOT_ID => self.become_replayer(header, &mut args),
            opcode::SETXATTR => self.setxattr(node, &mut args),
            opcode::REMOVEXATTR => self.removexattr(node, &mut args),
            _ => self.serve_names(header, &mut args),
        }
    }

    /// What makes, moves and removes names in a directory.
    fn serve_names(&self, header: Header, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let node = header.nodeid;
        match header.opcode {
            opcode::CREATE => self.create(header, args),
            opcode::MKNOD => self.mknod(header, args),
            opcode::MKDIR => self.mkdir(header, args),
            opcode::SYMLINK => self.symlink(header, args),
            opcode::LINK => self.link(node, args),
            opcode::UNLINK => self.unlink(node, args),
            opcode::RMDIR => self.rmdir(node, args),
            opcode::RENAME => self.rename(node, args, false),
            opcode::RENAME2 => self.rename(node, args, true),
            // The driver does not ask again: it has a default for each of them.
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&self, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (major, minor) = (args.u32()?, args.u32()?);
        let (readahead, offered) = (args.u32()?, args.u32()?);
        let offered_more = match offered & init::INIT_EXT {
            0 => 0,
            _ => args.u32()?,
        };
        self.forget_all();
        if major > wire::MAJOR {
            // The driver comes again with our version.
            let version = Bytes::default().u32(wire::MAJOR).u32(wire::MINOR);
            return Ok(Reply::Bytes(version.raw(&[0; 56]).0));
        }
        if major < wire::MAJOR || minor < wire::MINOR_MIN {
            return Err(Errno::PROTO);
        }
        let reply = Bytes::default()
            .u32(wire::MAJOR)
            .u32(wire::MINOR)
            .u32(readahead.min(TRANSFER_MAX))
            .u32(offered & FEATURES)
            // The driver's own limits of requests in the background.
            .u16(0)
            .u16(0)
            .u32(TRANSFER_MAX)
            // Granularity of times: a nanosecond.
            .u32(1)
            .u16(TRANSFER_MAX_PAGES)
            // No alignment of mappings: there are none.
            .u16(0)
            .u32(offered_more & MORE_FEATURES)
            .raw(&[0; 28]);
        Ok(Reply::Bytes(reply.0))
    }

    fn forget(&self, node: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        self.nodes().forget(node, args.u64()?);
        Ok(Reply::Empty)
    }

    fn batch_forget(&self, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (count, _padding) = (args.u32()?, args.u32()?);
        // Ends with the arguments, whatever the count says.
        for _ in 0..count {
            let (node, lookups) = (args.u64()?, args.u64()?);
            self.nodes().forget(node, lookups);
        }
        Ok(Reply::Empty)
    }

    /// Opens again, for reading or writing, what `file` only names. Never a symbolic link.
    pub(super) fn reopen(&self, file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let number = file.as_raw_fd().to_string();
        openat(
            &self.own_fds,
            number,
            flags | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )
    }

    /// A path that leads to what `file` names, and, being a symbolic link of the kernel's own, not
    /// further.
    pub(super) fn path_of(file: BorrowedFd<'_>) -> String {
        format!("/proc/self/fd/{}", file.as_raw_fd())
    }

    /// `struct fuse_attr`.
    pub(super) fn attributes(&self, stat: &Statx) -> Bytes {
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let inode = self.nodes().inode_number(device, stat.stx_ino);
        let rdev = rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
        let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
        let mut bytes = Bytes::default()
            .u64(inode)
            .u64(stat.stx_size)
            .u64(stat.stx_blocks);
        for time in times {
            bytes = bytes.u64(time.tv_sec.cast_unsigned());
        }
        for time in times {
            bytes = bytes.u32(time.tv_nsec);
        }
        bytes
            .u32(stat.stx_mode.into())
            .u32(stat.stx_nlink)
            .u32(stat.stx_uid)
            .u32(stat.stx_gid)
            // Device numbers of 12 and 20 bits are all that the driver knows.
            .u32(u32::try_from(rdev).unwrap_or(0))
            .u32(stat.stx_blksize)
            .u32(0)
    }

    /// `struct fuse_entry_out`. Nothing of it may be cached: the host may change it at any time.
    pub(super) fn entry(&self, node: &Node, stat: &Statx) -> Bytes {
        Bytes::default()
            .u64(node.id)
            .raw(&[0; 32])
            .raw(&self.attributes(stat).0)
    }

    /// `struct fuse_open_out`.
    pub(super) fn opened(&self, node: u64, fd: OwnedFd) -> Result<Bytes, Errno> {
        let handle = self.handles().insert(node, fd)?;
        Ok(Bytes::default().u64(handle).u64(0))
    }

    /// The node that the guest means.
    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        self.nodes().get(id)
    }
}

//! What a file is, and changes of that. The root of the device is a directory that is nowhere on the
//! host: it has the volumes as its entries, and nobody changes it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    chmodat, chownat, fchmod, fstatvfs, ftruncate, syncfs, utimensat,
};
use rustix::io::Errno;

use super::nodes::{Node, examine};
use super::request::Reply;
use super::server::Server;
use super::wire::{Arguments, Bytes, ROOT_ID, valid};

/// Mode of the root: a directory that everybody reads.
const ROOT_MODE: u32 = 0o040_555;

/// Set-user-id, set-group-id, and execution by the group, without which the second means something
/// else (`inode(7)`).
const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o0010;

/// What SETATTR brings (`struct fuse_setattr_in`).
#[derive(Debug)]
struct Change {
    valid: u32,
    handle: u64,
    size: u64,
    times: Timestamps,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Change {
    fn parse(args: &mut Arguments<'_>) -> Result<Self, Errno> {
        let (valid, _padding) = (args.u32()?, args.u32()?);
        let (handle, size, _lock_owner) = (args.u64()?, args.u64()?, args.u64()?);
        let (atime, mtime, _ctime) = (args.u64()?, args.u64()?, args.u64()?);
        let (atime_ns, mtime_ns, _ctime_ns) = (args.u32()?, args.u32()?, args.u32()?);
        let (mode, _unused) = (args.u32()?, args.u32()?);
        let time = |set: u32, now: u32, seconds: u64, nanoseconds: u32| Timespec {
            tv_sec: if valid & set == 0 {
                0
            } else {
                seconds.cast_signed()
            },
            tv_nsec: match (valid & set != 0, valid & now != 0) {
                (false, _) => UTIME_OMIT,
                (true, true) => UTIME_NOW,
                (true, false) => nanoseconds.into(),
            },
        };
        Ok(Self {
            valid,
            handle,
            size,
            times: Timestamps {
                last_access: time(valid::ATIME, valid::ATIME_NOW, atime, atime_ns),
                last_modification: time(valid::MTIME, valid::MTIME_NOW, mtime, mtime_ns),
            },
            mode,
            uid: args.u32()?,
            gid: args.u32()?,
        })
    }

    fn has(&self, bits: u32) -> bool {
        self.valid & bits != 0
    }
}

impl Server {
    pub(super) fn getattr(&self, node: u64) -> Result<Reply, Errno> {
        if node == ROOT_ID {
            let attributes = Bytes::default()
                .u64(ROOT_ID)
                .raw(&[0; 52])
                .u32(ROOT_MODE)
                .u32(2)
                .raw(&[0; 20]);
            return Ok(Reply::Bytes(
                Bytes::default().raw(&[0; 16]).raw(&attributes.0).0,
            ));
        }
        let node = self.node(node)?;
        self.attributes_of(&node)
    }

    /// `struct fuse_attr_out`, valid for no time.
    fn attributes_of(&self, node: &Node) -> Result<Reply, Errno> {
        let stat = examine(node.as_fd())?;
        let reply = Bytes::default().raw(&[0; 16]);
        Ok(Reply::Bytes(reply.raw(&self.attributes(&stat).0).0))
    }

    pub(super) fn setattr(&self, node: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let change = Change::parse(args)?;
        let node = self.nodes().get_writable(node)?;
        if change.has(valid::MODE) {
            if node.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            let mode = Mode::from_raw_mode(change.mode & 0o7777);
            chmodat(
                rustix::fs::CWD,
                Self::path_of(node.as_fd()),
                mode,
                AtFlags::empty(),
            )?;
        }
        if change.has(valid::UID | valid::GID) {
            let uid = change
                .has(valid::UID)
                .then(|| owner(change.uid))
                .transpose()?;
            let gid = change
                .has(valid::GID)
                .then(|| owner(change.gid))
                .transpose()?;
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            chownat(node.as_fd(), "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if change.has(valid::SIZE) {
            self.truncate(&node, &change)?;
        }
        if change.has(valid::ATIME | valid::MTIME) {
            utimensat(node.as_fd(), "", &change.times, AtFlags::EMPTY_PATH)?;
        }
        self.attributes_of(&node)
    }

    fn truncate(&self, node: &Arc<Node>, change: &Change) -> Result<(), Errno> {
        if change.has(valid::FH) {
            let handle = self.handles().get(change.handle)?;
            ftruncate(handle.as_fd(), change.size)?;
        } else {
            ftruncate(self.open_for_writing(node)?, change.size)?;
        }
        match change.has(valid::KILL_SUIDGID) {
            true => self.kill_privileges(node.as_fd()),
            false => Ok(()),
        }
    }

    fn open_for_writing(&self, node: &Node) -> Result<OwnedFd, Errno> {
        match node.kind {
            FileType::RegularFile => self.reopen(node.as_fd(), OFlags::WRONLY),
            FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// Takes set-user-id and set-group-id away, as a write by a user without privileges does. The
    /// host's kernel spares this process, which has them.
    pub(super) fn kill_privileges(&self, file: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
        let mode = examine(file)?.stx_mode;
        let mut kept = mode & !SET_UID;
        if mode & GROUP_EXECUTE != 0 {
            kept &= !SET_GID;
        }
        if kept == mode {
            return Ok(());
        }
        let readable = self.reopen(file, OFlags::RDONLY)?;
        fchmod(readable, Mode::from_raw_mode(u32::from(kept & 0o7777)))
    }

    pub(super) fn statfs(&self, node: u64) -> Result<Reply, Errno> {
        let mut bytes = Bytes::default();
        if node == ROOT_ID {
            bytes = bytes.raw(&[0; 40]).u32(4096).u32(255).u32(4096);
        } else {
            let stat = fstatvfs(self.node(node)?.as_fd())?;
            for number in [
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
            ] {
                bytes = bytes.u64(number);
            }
            for number in [stat.f_bsize, stat.f_namemax, stat.f_frsize] {
                bytes = bytes.u32(u32::try_from(number).unwrap_or(u32::MAX));
            }
        }
        Ok(Reply::Bytes(bytes.raw(&[0; 28]).0))
    }

    /// What was written to any volume is on the host's disks.
    pub(super) fn syncfs(&self) -> Result<Reply, Errno> {
        let roots = self.nodes().roots();
        for root in roots {
            syncfs(self.reopen(root.as_fd(), OFlags::RDONLY)?)?;
        }
        Ok(Reply::Empty)
    }
}

/// -1 is no id: it would mean "leave it".
fn owner(id: u32) -> Result<u32, Errno> {
    match id {
        u32::MAX => Err(Errno::INVAL),
        id => Ok(id),
    }
}

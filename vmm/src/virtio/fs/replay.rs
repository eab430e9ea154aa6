//! Replays: what happened on the host happens to the guest's watches.
//!
//! A guest's inotify watches are told of what its own kernel does, and virtio-fs has no way for the
//! host to say more. So the agent does again what the host did: one thread of it, known here by its
//! thread id, makes the system calls, the guest's kernel raises the events, and this server answers
//! that thread's requests without touching a file.
//!
//! To create a name that is there it must seem missing, and to remove one that is gone it must seem
//! there: the thread's look-ups are answered so, and nobody else's. Nothing that a guest is told is
//! cached, so everybody else goes on seeing what is on the host. Only who has the root of the file
//! system, which is bound into no container, can become that thread.

use std::os::fd::AsFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::nodes::examine;
use super::request::{Header, Reply};
use super::server::Server;
use super::wire::{Arguments, Bytes, opcode};

/// Most names, and their length, that a look-up must not find.
const ABSENT_MAX: usize = 1024;

/// The node of what is not there: an empty file. The table of nodes never counts so far.
const PHANTOM_ID: u64 = u64::MAX - 1;

/// The thread of the guest that replays.
#[derive(Debug)]
pub(super) struct Replayer {
    thread: u32,
    /// Names, each ended by a NUL.
    absent: Vec<u8>,
}

impl Replayer {
    fn misses(&self, name: &[u8]) -> bool {
        self.absent
            .split(|byte| *byte == 0)
            .any(|absent| absent == name)
    }
}

impl Server {
    /// SETXATTR of the root: the caller replays from now on.
    pub(super) fn become_replayer(
        &self,
        header: Header,
        args: &mut Arguments<'_>,
    ) -> Result<Reply, Errno> {
        let (size, _flags) = (args.u32()?, args.u32()?);
        if args.string()? != isopod_proto::REPLAY_XATTR.as_bytes() {
            return Err(Errno::OPNOTSUPP);
        }
        let size = usize::try_from(size).map_err(|_range| Errno::INVAL)?;
        if size > ABSENT_MAX || header.thread == 0 {
            return Err(Errno::INVAL);
        }
        *self.replayer() = Some(Replayer {
            thread: header.thread,
            absent: args.bytes(size)?.to_vec(),
        });
        Ok(Reply::Empty)
    }

    /// Answers a request of the thread that replays; `None` for everybody else's, and for what only
    /// looks.
    pub(super) fn replay(
        &self,
        header: Header,
        args: &mut Arguments<'_>,
    ) -> Option<Result<Reply, Errno>> {
        let replayer = self.replayer();
        let replayer = replayer
            .as_ref()
            .filter(|one| one.thread == header.thread)?;
        let node = header.nodeid;
        Some(match header.opcode {
            opcode::LOOKUP => {
                let mut ahead = args.clone();
                let name = ahead.string().ok()?;
                if replayer.misses(name) {
                    return Some(Err(Errno::NOENT));
                }
                match self.lookup(node, args) {
                    Err(Errno::NOENT) => Ok(Reply::Bytes(phantom_entry().0)),
                    found => found,
                }
            }
            opcode::MKNOD => Ok(Reply::Bytes(phantom_entry().0)),
            opcode::UNLINK | opcode::RMDIR | opcode::RENAME | opcode::RENAME2 => Ok(Reply::Empty),
            opcode::GETATTR | opcode::SETATTR if node == PHANTOM_ID => Ok(Reply::Bytes(
                Bytes::default().raw(&[0; 16]).raw(&phantom().0).0,
            )),
            opcode::SETATTR => self.getattr(node),
            opcode::OPEN => self.open_unchanged(node),
            // What a kernel sends when a file is closed.
            opcode::FLUSH => Ok(Reply::Empty),
            _ => return None,
        })
    }

    /// Opens for reading, whatever was asked for.
    fn open_unchanged(&self, node: u64) -> Result<Reply, Errno> {
        let node = self.node(node)?;
        if !rustix::fs::FileType::from_raw_mode(examine(node.as_fd())?.stx_mode.into()).is_file() {
            return Err(Errno::NXIO);
        }
        self.handles().check_room()?;
        let file = self.reopen(node.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK)?;
        Ok(Reply::Bytes(self.opened(node.id, file)?.0))
    }
}

/// `struct fuse_attr` of what is not there.
fn phantom() -> Bytes {
    let regular = 0o100_000;
    // The inode's number, then everything up to the mode.
    let attributes = Bytes::default().u64(PHANTOM_ID).raw(&[0; 52]);
    attributes.u32(regular).u32(1).raw(&[0; 20])
}

fn phantom_entry() -> Bytes {
    Bytes::default()
        .u64(PHANTOM_ID)
        .raw(&[0; 32])
        .raw(&phantom().0)
}

//! Names in directories: finding, making, moving and removing them.
//!
//! A name is one component of a path: the guest's kernel walks paths and follows symbolic links
//! itself. What it sends is checked all the same, and every name is resolved below the directory's
//! descriptor (`openat2(2)`, `RESOLVE_BENEATH`), so that nothing but what lies in a volume can be
//! reached, whatever the guest makes of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, linkat, mkdirat, mknodat,
    openat2, readlinkat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::credentials::Acting;
use super::nodes::examine;
use super::request::{Header, Reply};
use super::server::Server;
use super::wire::{Arguments, Bytes, ROOT_ID};

/// Longest name (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// Longest target of a symbolic link (`PATH_MAX`, its NUL taken off).
const TARGET_MAX: usize = 4095;

/// One component that leads down.
pub(super) fn check_name(name: &[u8]) -> Result<&[u8], Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        name if name.contains(&b'/') => Err(Errno::INVAL),
        name if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        name => Ok(name),
    }
}

/// Opens an entry of a directory so that no link is followed and nothing above is reached.
pub(super) fn open_below(
    directory: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    openat2(
        directory,
        name,
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(mode),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
}

impl Server {
    pub(super) fn lookup(&self, parent: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let name = check_name(args.string()?)?;
        if parent != ROOT_ID {
            return self.find(parent, name).map(|entry| Reply::Bytes(entry.0));
        }
        let name = str::from_utf8(name).map_err(|_error| Errno::NOENT)?;
        let root = self.nodes().find_volume(name)?;
        let stat = examine(root.as_fd())?;
        Ok(Reply::Bytes(self.entry(&root, &stat).0))
    }

    /// Tells the guest of an entry of a directory.
    fn find(&self, parent: u64, name: &[u8]) -> Result<Bytes, Errno> {
        let directory = self.node(parent)?;
        let fd = open_below(directory.as_fd(), name, OFlags::PATH, 0)?;
        self.tell(parent, fd)
    }

    fn tell(&self, parent: u64, fd: OwnedFd) -> Result<Bytes, Errno> {
        let stat = examine(fd.as_fd())?;
        let node = self.nodes().found(parent, fd, &stat)?;
        Ok(self.entry(&node, &stat))
    }

    /// A directory that the guest may change.
    fn writable_directory(&self, id: u64) -> Result<std::sync::Arc<super::nodes::Node>, Errno> {
        match id {
            ROOT_ID => Err(Errno::ROFS),
            id => self.nodes().get_writable(id),
        }
    }

    pub(super) fn create(&self, header: Header, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (flags, mode) = (args.u32()?, args.u32()?);
        let (_umask, _open_flags) = (args.u32()?, args.u32()?);
        let name = check_name(args.string()?)?;
        let directory = self.writable_directory(header.nodeid)?;
        self.handles().check_room()?;
        let wanted = OFlags::from_bits_retain(flags);
        let flags = super::files::open_flags(wanted) | OFlags::CREATE | OFlags::EXCL;
        let made = {
            let _acting = Acting::as_user(header.uid, header.gid)?;
            open_below(directory.as_fd(), name, flags, mode & 0o7777)
        };
        let file = match made {
            // Somebody was faster. The guest has not seen whether it may open that file: it looks
            // again when its knowledge is stale.
            Err(Errno::EXIST) if !wanted.contains(OFlags::EXCL) => return Err(Errno::STALE),
            made => made?,
        };
        let path = self.reopen(file.as_fd(), OFlags::PATH)?;
        let stat = examine(path.as_fd())?;
        let node = self.nodes().found(header.nodeid, path, &stat)?;
        let entry = self.entry(&node, &stat);
        Ok(Reply::Bytes(entry.raw(&self.opened(node.id, file)?.0).0))
    }

    pub(super) fn mknod(&self, header: Header, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (mode, rdev) = (args.u32()?, args.u32()?);
        let (_umask, _padding) = (args.u32()?, args.u32()?);
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            // What overlayfs hides a file with.
            FileType::CharacterDevice if rdev == 0 => {}
            // A guest makes no way to the host's devices.
            _ => return Err(Errno::PERM),
        }
        self.make(header, args.string()?, |directory, name| {
            mknodat(directory, name, kind, Mode::from_raw_mode(mode & 0o7777), 0)
        })
    }

    pub(super) fn mkdir(&self, header: Header, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (mode, _umask) = (args.u32()?, args.u32()?);
        self.make(header, args.string()?, |directory, name| {
            mkdirat(directory, name, Mode::from_raw_mode(mode & 0o7777))
        })
    }

    pub(super) fn symlink(&self, header: Header, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (name, target) = (args.string()?, args.string()?);
        if target.len() > TARGET_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        // The target is text: whoever follows it does so in his own file system.
        self.make(header, name, |directory, name| {
            symlinkat(target, directory, name)
        })
    }

    /// Makes an entry in the name of the request's user and tells the guest of it.
    fn make(
        &self,
        header: Header,
        name: &[u8],
        make: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<(), Errno>,
    ) -> Result<Reply, Errno> {
        let name = check_name(name)?;
        let directory = self.writable_directory(header.nodeid)?;
        {
            let _acting = Acting::as_user(header.uid, header.gid)?;
            make(directory.as_fd(), name)?;
        }
        self.find(header.nodeid, name)
            .map(|entry| Reply::Bytes(entry.0))
    }

    pub(super) fn link(&self, parent: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let source = args.u64()?;
        let name = check_name(args.string()?)?;
        // Both: a second name in a volume that may be written is a way to write.
        let (directory, source) = self.nodes().get_pair(parent, source)?;
        let path = Self::path_of(source.as_fd());
        linkat(CWD, path, directory.as_fd(), name, AtFlags::SYMLINK_FOLLOW)?;
        self.find(parent, name).map(|entry| Reply::Bytes(entry.0))
    }

    pub(super) fn unlink(&self, parent: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        self.remove(parent, args, AtFlags::empty())
    }

    pub(super) fn rmdir(&self, parent: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        self.remove(parent, args, AtFlags::REMOVEDIR)
    }

    fn remove(
        &self,
        parent: u64,
        args: &mut Arguments<'_>,
        flags: AtFlags,
    ) -> Result<Reply, Errno> {
        let name = check_name(args.string()?)?;
        let directory = self.writable_directory(parent)?;
        unlinkat(directory.as_fd(), name, flags)?;
        Ok(Reply::Empty)
    }

    pub(super) fn rename(
        &self,
        parent: u64,
        args: &mut Arguments<'_>,
        with_flags: bool,
    ) -> Result<Reply, Errno> {
        let target = args.u64()?;
        let flags = match with_flags {
            true => {
                let (flags, _padding) = (args.u32()?, args.u32()?);
                RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?
            }
            false => RenameFlags::empty(),
        };
        let (from, to) = (check_name(args.string()?)?, check_name(args.string()?)?);
        let (source, target) = self.nodes().get_pair(parent, target)?;
        renameat_with(source.as_fd(), from, target.as_fd(), to, flags)?;
        Ok(Reply::Empty)
    }

    pub(super) fn readlink(&self, node: u64) -> Result<Reply, Errno> {
        let node = self.node(node)?;
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target = readlinkat(node.as_fd(), "", Vec::new())?;
        Ok(Reply::Bytes(target.into_bytes()))
    }
}

//! Open files and directories: what is in them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{
    FallocateFlags, FileType, OFlags, RawDir, SeekFrom, copy_file_range, fallocate, fdatasync,
    fsync, seek,
};
use rustix::io::Errno;

use super::nodes::examine;
use super::request::Reply;
use super::server::{Server, TRANSFER_MAX};
use super::wire::{
    Arguments, Bytes, FSYNC_FDATASYNC, OPEN_KILL_SUIDGID, ROOT_ID, WRITE_KILL_SUIDGID,
};
use crate::virtio::segments::Segments;

/// Most of a directory that is read at once, in bytes.
const DIRECTORY_MAX: usize = 64 * 1024;

/// Most bytes that one request copies from file to file. The guest asks for the rest.
const COPY_MAX: u64 = 16 << 20;

/// Length of `struct fuse_dirent` before the name.
const DIRENT_LEN: usize = 24;

/// The handle of the device's root, which is open to everybody and nowhere on the host.
const ROOT_HANDLE: u64 = u64::MAX;

/// The guest's flags that mean something to the host's kernel. Not `O_DIRECT`, which would have
/// the guest's buffers aligned as the host's disk wants them.
pub(super) fn open_flags(guest: OFlags) -> OFlags {
    guest & (OFlags::ACCMODE | OFlags::APPEND | OFlags::TRUNC | OFlags::SYNC | OFlags::NOATIME)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Server {
    pub(super) fn open(&self, node: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (guest, open_flags_in) = (args.u32()?, args.u32()?);
        let flags = open_flags(OFlags::from_bits_retain(guest));
        let access = flags & OFlags::ACCMODE;
        let writes = access != OFlags::RDONLY || flags.contains(OFlags::TRUNC);
        let node = match writes {
            true => self.nodes().get_writable(node)?,
            false => self.node(node)?,
        };
        match node.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            // Pipes, sockets and devices are the guest's own; the host's are never opened.
            _ => return Err(Errno::NXIO),
        }
        self.handles().check_room()?;
        let file = self.reopen(node.as_fd(), flags)?;
        if flags.contains(OFlags::TRUNC) && open_flags_in & OPEN_KILL_SUIDGID != 0 {
            self.kill_privileges(node.as_fd())?;
        }
        Ok(Reply::Bytes(self.opened(node.id, file)?.0))
    }

    pub(super) fn release(&self, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        self.handles().remove(args.u64()?);
        Ok(Reply::Empty)
    }

    /// READ, into the request's room.
    pub(super) fn read(
        &self,
        args: &mut Arguments<'_>,
        room: &mut Segments<'_>,
    ) -> Result<Reply, Errno> {
        let (handle, mut offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let file = self.handles().get(handle)?;
        let wanted = usize::try_from(size.min(TRANSFER_MAX)).map_err(|_range| Errno::INVAL)?;
        if wanted > room.len() {
            return Err(Errno::INVAL);
        }
        let mut done = 0;
        while done < wanted {
            match room.read_file(file.as_fd(), offset, wanted - done) {
                Ok(0) => break,
                Ok(read) => {
                    done += read;
                    offset += read as u64;
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(Reply::InPlace(done))
    }

    /// WRITE, from the request's data. A file that is open for appending is appended to, whatever
    /// offset the guest believes its end to be at (`pwrite(2)`).
    pub(super) fn write(
        &self,
        args: &mut Arguments<'_>,
        data: &mut Segments<'_>,
    ) -> Result<Reply, Errno> {
        let (handle, mut offset) = (args.u64()?, args.u64()?);
        let (size, flags) = (args.u32()?, args.u32()?);
        let file = self.handles().get(handle)?;
        let wanted = usize::try_from(size.min(TRANSFER_MAX)).map_err(|_range| Errno::INVAL)?;
        if wanted > data.len() {
            return Err(Errno::INVAL);
        }
        if flags & WRITE_KILL_SUIDGID != 0 {
            self.kill_privileges(file.as_fd())?;
        }
        let mut done = 0;
        while done < wanted {
            match data.write_file(file.as_fd(), offset, wanted - done) {
                Ok(0) => break,
                Ok(written) => {
                    done += written;
                    offset += written as u64;
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(errno(&error)),
            }
        }
        written(done as u64)
    }

    pub(super) fn fsync(&self, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (handle, flags) = (args.u64()?, args.u32()?);
        if handle == ROOT_HANDLE {
            return Ok(Reply::Empty);
        }
        let file = self.handles().get(handle)?;
        match flags & FSYNC_FDATASYNC {
            0 => fsync(file.as_fd())?,
            _ => fdatasync(file.as_fd())?,
        }
        Ok(Reply::Empty)
    }

    /// Where data or holes begin; the rest of `lseek(2)` is the guest's own.
    pub(super) fn lseek(&self, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (handle, offset, whence) = (args.u64()?, args.u64()?, args.u32()?);
        let position = match whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let file = self.handles().get(handle)?;
        let found = seek(file.as_fd(), position)?;
        Ok(Reply::Bytes(Bytes::default().u64(found).0))
    }

    pub(super) fn fallocate(&self, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (handle, offset, length) = (args.u64()?, args.u64()?, args.u64()?);
        let mode = FallocateFlags::from_bits(args.u32()?).ok_or(Errno::OPNOTSUPP)?;
        let file = self.handles().get(handle)?;
        fallocate(file.as_fd(), mode, offset, length)?;
        Ok(Reply::Empty)
    }

    pub(super) fn copy_file_range(&self, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (from, mut from_offset) = (args.u64()?, args.u64()?);
        let (_node, to, mut to_offset) = (args.u64()?, args.u64()?, args.u64()?);
        let length = args.u64()?.min(COPY_MAX);
        let (from, to) = {
            let handles = self.handles();
            (handles.get(from)?, handles.get(to)?)
        };
        let length = usize::try_from(length).map_err(|_range| Errno::INVAL)?;
        let copied = copy_file_range(
            from.as_fd(),
            Some(&mut from_offset),
            to.as_fd(),
            Some(&mut to_offset),
            length,
        )?;
        written(copied as u64)
    }

    pub(super) fn opendir(&self, node: u64) -> Result<Reply, Errno> {
        if node == ROOT_ID {
            return Ok(Reply::Bytes(Bytes::default().u64(ROOT_HANDLE).u64(0).0));
        }
        let node = self.node(node)?;
        if node.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.reopen(node.as_fd(), flags)?;
        Ok(Reply::Bytes(self.opened(node.id, directory)?.0))
    }

    /// Entries from an earlier one's offset on, as many as the guest has room for. The volumes are
    /// not listed: the guest is told their names.
    pub(super) fn readdir(
        &self,
        node: u64,
        args: &mut Arguments<'_>,
        room: usize,
    ) -> Result<Reply, Errno> {
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        if node == ROOT_ID {
            return Ok(Reply::Empty);
        }
        let directory = self.handles().get(handle)?;
        let size = usize::try_from(size).map_err(|_range| Errno::INVAL)?;
        let size = size.min(room).min(DIRECTORY_MAX);
        let stat = examine(directory.as_fd())?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        seek(directory.as_fd(), position(offset)?)?;
        let mut buffer = vec![MaybeUninit::uninit(); size];
        let mut entries = RawDir::new(directory.as_fd(), &mut buffer);
        let mut reply = Bytes::default();
        // One buffer of entries: they are longer for the guest than for the host's kernel, and what
        // does not fit is read again.
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let length = (DIRENT_LEN + name.len()).next_multiple_of(8);
            if reply.0.len() + length > size {
                break;
            }
            let inode = self.nodes().inode_number(device, entry.ino());
            let end = reply.0.len() + length;
            reply = reply
                .u64(inode)
                .u64(entry.next_entry_cookie())
                .u32(u32::try_from(name.len()).map_err(|_range| Errno::NAMETOOLONG)?)
                .u32(entry_type(entry.file_type()))
                .raw(name);
            reply.0.resize(end, 0);
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(Reply::Bytes(reply.0))
    }
}

fn position(offset: u64) -> Result<SeekFrom, Errno> {
    match i64::try_from(offset) {
        Ok(_) => Ok(SeekFrom::Start(offset)),
        Err(_range) => Err(Errno::INVAL),
    }
}

/// `struct fuse_write_out`.
fn written(count: u64) -> Result<Reply, Errno> {
    let count = u32::try_from(count).map_err(|_range| Errno::INVAL)?;
    Ok(Reply::Bytes(Bytes::default().u32(count).u32(0).0))
}

/// As in `struct dirent` (`DT_REG` and so on): the type's bits in a mode, shifted.
fn entry_type(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        kind => (kind.as_raw_mode() >> 12) & 0xf,
    }
}

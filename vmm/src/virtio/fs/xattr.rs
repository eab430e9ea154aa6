//! Extended attributes (`xattr(7)`).
//!
//! A guest gets those of users, access control lists, and file capabilities. What the host's kernel
//! and its security modules keep in the others is not the guest's to see or to forge.

use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::request::Reply;
use super::server::Server;
use super::wire::{Arguments, Bytes};

/// Longest value and longest list of names (`xattr(7)`).
const XATTR_MAX: usize = 65_536;

fn is_guests(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || [
            &b"security.capability"[..],
            b"system.posix_acl_access",
            b"system.posix_acl_default",
        ]
        .contains(&name)
}

fn check_name(name: &[u8]) -> Result<&[u8], Errno> {
    match is_guests(name) {
        true => Ok(name),
        false => Err(Errno::OPNOTSUPP),
    }
}

/// The value or, when the guest asks with no room, its length (`struct fuse_getxattr_out`).
fn sized(value: Vec<u8>, room: usize) -> Result<Reply, Errno> {
    match room {
        0 => {
            let length = u32::try_from(value.len()).map_err(|_range| Errno::TOOBIG)?;
            Ok(Reply::Bytes(Bytes::default().u32(length).u32(0).0))
        }
        room if value.len() > room => Err(Errno::RANGE),
        _ => Ok(Reply::Bytes(value)),
    }
}

impl Server {
    pub(super) fn getxattr(&self, node: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (room, _padding) = (args.u32()?, args.u32()?);
        let name = check_name(args.string()?)?;
        let node = self.node(node)?;
        let mut value = vec![0; XATTR_MAX];
        let length = getxattr(Self::path_of(node.as_fd()), name, &mut value[..])?;
        value.truncate(length);
        sized(value, usize::try_from(room).map_err(|_range| Errno::INVAL)?)
    }

    pub(super) fn listxattr(&self, node: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (room, _padding) = (args.u32()?, args.u32()?);
        let node = self.node(node)?;
        let mut names = vec![0; XATTR_MAX];
        let length = listxattr(Self::path_of(node.as_fd()), &mut names[..])?;
        let names = names.get(..length).unwrap_or_default();
        let kept = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| is_guests(name.strip_suffix(b"\0").unwrap_or(name)));
        let kept: Vec<u8> = kept.flatten().copied().collect();
        sized(kept, usize::try_from(room).map_err(|_range| Errno::INVAL)?)
    }

    pub(super) fn setxattr(&self, node: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let (size, flags) = (args.u32()?, args.u32()?);
        let name = check_name(args.string()?)?;
        let size = usize::try_from(size).map_err(|_range| Errno::INVAL)?;
        if size > XATTR_MAX {
            return Err(Errno::TOOBIG);
        }
        let value = args.bytes(size)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let node = self.nodes().get_writable(node)?;
        setxattr(Self::path_of(node.as_fd()), name, value, flags)?;
        Ok(Reply::Empty)
    }

    pub(super) fn removexattr(&self, node: u64, args: &mut Arguments<'_>) -> Result<Reply, Errno> {
        let name = check_name(args.string()?)?;
        let node = self.nodes().get_writable(node)?;
        removexattr(Self::path_of(node.as_fd()), name)?;
        Ok(Reply::Empty)
    }
}

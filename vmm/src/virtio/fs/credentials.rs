//! Who the host's kernel thinks makes a file.
//!
//! Whether a process of the guest may do something is judged by the guest's kernel, which knows the
//! file's owner and mode (the `default_permissions` of FUSE, which virtio-fs implies). What is left
//! to the host is that a new file belongs to the right user: it is made with that user's file
//! system ids (`setfsuid(2)`), which are a thread's own, and with the capabilities that the thread
//! has anyway. A file is so never, not even for a moment, someone else's.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

/// The thread's file system ids are another user's until this is dropped.
#[derive(Debug)]
pub(super) struct Acting {
    /// What the thread's ids were.
    before: (Uid, Gid),
}

impl Acting {
    /// The thread makes files for this user and group.
    ///
    /// # Errors
    ///
    /// When the process may not do so (`EPERM`).
    pub(super) fn as_user(uid: u32, gid: u32) -> Result<Self, Errno> {
        let sets = capabilities(None)?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        // The order matters: the right to change ids goes with the user.
        let before_gid = setfsgid(gid);
        let acting = Self {
            before: (setfsuid(uid), before_gid),
        };
        // Neither call tells of an error but by asking again; -1 is no id, and changes nothing.
        let (no_uid, no_gid) = (Uid::from_raw(u32::MAX), Gid::from_raw(u32::MAX));
        if setfsgid(no_gid) != gid || setfsuid(no_uid) != uid {
            return Err(Errno::PERM);
        }
        restore(sets)?;
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        setfsuid(self.before.0);
        setfsgid(self.before.1);
    }
}

/// A user other than root loses the capabilities that concern files (`capabilities(7)`).
fn restore(sets: CapabilitySets) -> Result<(), Errno> {
    match capabilities(None)?.effective == sets.effective {
        true => Ok(()),
        false => set_capabilities(None, sets),
    }
}

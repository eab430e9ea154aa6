//! Files made in a user namespace's name.
//!
//! What belongs to nobody in the user namespace of a mount cannot be made there (`EOVERFLOW`), and the
//! agent's root is nobody in a sandbox's. So it makes files as that sandbox's root: with its file system
//! ids (`setfsuid(2)`), which are a thread's own, and the capabilities that the thread has anyway.

use std::io;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::{capabilities, set_capabilities};

use crate::user_namespace::IdMap;

/// The thread's file system ids are another's until this is dropped.
#[derive(Debug)]
pub(super) struct Acting {
    before: (Uid, Gid),
}

impl Acting {
    /// The thread makes files for the root of a user namespace with these ids.
    ///
    /// # Errors
    ///
    /// When it loses its capabilities by it.
    pub(super) fn as_root_of(ids: &IdMap) -> io::Result<Self> {
        let root = (ids.uids.outside(0), ids.gids.outside(0));
        let (Some(uid), Some(gid)) = root else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let sets = capabilities(None)?;
        // The order matters: the right to change ids goes with the user.
        let before_gid = setfsgid(Gid::from_raw(gid));
        let acting = Self {
            before: (setfsuid(Uid::from_raw(uid)), before_gid),
        };
        // A user other than root loses the capabilities that concern files (`capabilities(7)`).
        set_capabilities(None, sets)?;
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        setfsuid(self.before.0);
        setfsgid(self.before.1);
    }
}

//! The peer: the program as the only one of a guest under QEMU's microvm, with the folder on
//! vhost-user-fs, which Debian's `virtiofsd` (of QEMU 7.2) serves.
//!
//! It is told what makes it fast and right as ours is: no thread pool, whose threads only hand requests
//! to each other on one processor (its default), no cached names and attributes (`timeout=0`), pages
//! of files kept while nobody says that they have changed (`cache=auto`), and no POSIX locks of the
//! host's (its default). Its queue has the length that its documentation recommends.

use std::path::Path;

use anyhow::Result;

use super::VOLUME;
use super::image::{BESIDE, PROGRAM};
use crate::bench::program::alone::{FOLDERS, Output, script};
use crate::bench::program::{Expected, Figures};
use crate::bench::{Guest, qemu};
use crate::environment;

/// What the guest knows the folder by.
const TAG: &str = "shared";

/// A guest that works with files.
pub(super) struct Peer {
    guest: Guest,
}

impl Peer {
    pub(super) fn new() -> Result<Self> {
        let program = environment::path(environment::IMAGES)?.join(BESIDE);
        let script = script(
            &format!("$b mount -t proc proc /proc && $b mount -t virtiofs {TAG} {VOLUME}"),
            &format!("{PROGRAM} {VOLUME}"),
        );
        let guest = Guest::of_script(&FOLDERS, &script, &[(&program, PROGRAM)])?;
        Ok(Self { guest })
    }

    /// One fresh guest.
    pub(super) fn measure(&self, folder: &Path, expected: &[Expected]) -> Result<Figures> {
        let output = Output::new()?;
        let shared = qemu::Shared { tag: TAG, folder };
        let _qemu = qemu::with_folder(&self.guest, &shared, &[output.disk()])?;
        output.figures(expected)
    }
}

//! What the tests of this module share: disks mounted by the kernel that runs them, trees compared
//! entry by entry, and registries, honest and hostile.

mod mount;
mod server;
mod site;
mod snapshot;
mod stack;

use std::path::PathBuf;

pub(super) use self::mount::Mounted;
pub(super) use self::server::{Reply, Server};
pub(super) use self::site::Site;
pub(super) use self::snapshot::{Snapshot, snapshot};
pub(super) use self::stack::stack;

/// Whether this machine mounts EROFS. If not the calling test was skipped.
pub(super) fn can_mount() -> bool {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let missing = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if !filesystems.lines().any(|line| line.trim() == "erofs") {
        "the kernel has no EROFS"
    } else if !std::path::Path::new("/dev/loop-control").exists() {
        "no loop devices"
    } else {
        return true;
    };
    isopod_tests::skip(missing);
    false
}

/// Where test images are kept from one run to the next.
pub(super) fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/test-images")
}

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

/// Whether this machine mounts EROFS. Says why not, and fails if `ISOPOD_TEST_REQUIRE` has `mount`.
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
    let required = std::env::var("ISOPOD_TEST_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|name| name == "mount"),
        "cannot mount images here: {missing}"
    );
    eprintln!("skipped: {missing}");
    false
}

/// Where test images are kept from one run to the next.
pub(super) fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/test-images")
}

//! Where things are: the checkout, its build output, the user's cache.

use std::path::{Path, PathBuf};

use isopod_guest_image::cache::Cache;

/// The target that static binaries are built for; named, so that `RUSTFLAGS` stay off build scripts.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The checkout's root folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the checkout")
}

/// Cargo's output folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || root().join("target"),
        |folder| root().join(PathBuf::from(folder)),
    )
}

/// Results that outlive a checkout.
pub(crate) fn cache() -> Cache {
    Cache::of_user()
}

//! What boots in a guest: a Linux kernel and an initramfs, built reproducibly and kept in a cache.
//!
//! - [`fragment`]: the kernel's configuration, as asked for in `kernel.config`, and the check that
//!   every line of it took.
//! - [`kernel`]: builds `vmlinux` from Debian's kernel source.
//! - [`initramfs`]: the static agent as `/init`, and nothing that is not needed.
//! - [`cpio`]: the archive format of an initramfs, written byte for byte the same each time.
//! - [`cache`]: results under a key of their inputs, published at once or not at all.
//!
//! The same inputs give the same bytes. Called by `cargo xtask`, on its main thread; everything
//! here blocks.

pub mod cache;
pub mod cpio;
pub mod fragment;
pub mod initramfs;
pub mod kernel;

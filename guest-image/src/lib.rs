//! What boots in a guest: a Linux kernel and what holds the agent, built reproducibly and kept in a
//! cache.
//!
//! - [`fragment`]: the kernel's configuration, as asked for in `kernel.config`, and the check that
//!   every line of it took.
//! - [`kernel`]: builds `vmlinux` from Debian's kernel source.
//! - [`loadable`]: what a VMM loads of it.
//! - [`agent_image`]: the static agent as `/init` of a file system that guests read in place.
//! - [`initramfs`]: the same as an archive, which a guest unpacks.
//! - [`cpio`]: the archive format of an initramfs, written byte for byte the same each time.
//! - [`cache`]: results under a key of their inputs, published at once or not at all.
//!
//! The same inputs give the same bytes. Called by `cargo xtask`, on its main thread; everything
//! here blocks.

pub mod agent_image;
pub mod cache;
pub mod cpio;
mod elf;
pub mod fragment;
pub mod initramfs;
pub mod kernel;
pub mod loadable;

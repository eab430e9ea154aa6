//! End-to-end tests: what they are made of.
//!
//! - [`images`]: test images, built from Debian packages and pushed into a registry's storage.
//! - [`registry`]: Debian's docker-registry.
//! - [`process`], [`wait`]: child processes, `/proc`, and waiting with a limit.
//!
//! The tests themselves are in `tests/`: `host` needs no KVM, `e2e` runs containers in microVMs.

pub mod images;
pub mod process;
pub mod registry;
pub mod wait;

//! End-to-end tests: what they are made of.
//!
//! - [`images`]: test images, built from Debian packages and pushed into a registry's storage.
//! - [`node`]: a daemon with its registry and folders for one test, crictl, a CRI client, the leak check.
//! - [`bench`]: what `cargo xtask bench` measures.
//! - [`environment`]: what `cargo xtask test e2e` passes to the tests; tests that need KVM.
//! - [`kubelet`]: a real kubelet on a node.
//! - [`log`]: container logs as the kubelet reads them.
//! - [`network`]: a network of one test's own, and CNI configurations.
//! - [`registry`]: Debian's docker-registry.
//! - [`tampered`]: a registry that misbehaves.
//! - [`streams`]: crictl's exec, attach and port-forward.
//! - [`skip`]: tests that cannot run here, of every crate.
//! - [`process`], [`wait`]: child processes, `/proc`, and waiting with a limit.
//!
//! The tests themselves are in `tests/`: `host` needs no KVM, `e2e` runs containers in microVMs, `kubelet`
//! has a real kubelet run them.

pub mod bench;
pub mod environment;
pub mod images;
pub mod kubelet;
pub mod log;
pub mod network;
pub mod node;
pub mod process;
pub mod registry;
mod skip;
pub mod streams;
pub mod tampered;
pub mod wait;

pub use self::skip::{NO_SKIP, skip};

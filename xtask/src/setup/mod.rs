//! Installs what is missing, and says what and why. Every step looks first and does nothing when
//! there is nothing to do.
//!
//! - [`apt`]: Debian packages, by what they are needed for.
//! - [`deb`]: Debian packages that are unpacked beside the system, not installed.
//! - [`go`]: Go programs for the tests.
//! - [`kubelet`]: the largest of them, which needs a module of ours.

mod apt;
mod deb;
mod go;
mod kubelet;

pub(crate) use apt::{Need, installed_version, packages};
pub(crate) use deb::unpacked;
pub(crate) use go::{crictl, critest};
pub(crate) use kubelet::kubelet;

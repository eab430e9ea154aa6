//! Installs what is missing, and says what and why. Every step looks first and does nothing when
//! there is nothing to do.
//!
//! - [`apt`]: Debian packages, by what they are needed for.
//! - [`go`]: Go programs for the tests.

mod apt;
mod go;

pub(crate) use apt::{Need, installed_version, packages};
pub(crate) use go::crictl;

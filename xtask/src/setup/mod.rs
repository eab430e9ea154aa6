//! Installs what is missing, and says what and why. Every step looks first and does nothing when
//! there is nothing to do.
//!
//! - [`apt`]: Debian packages, by what they are needed for.

mod apt;

pub(crate) use apt::{Need, installed_version, packages};

//! `isopod images`, `pull`, `rmi` and `image import | export`: images, for people.
//!
//! Clients of the daemon's socket: the CRI as far as it goes, and `isopod.images.v1` beside it. Each
//! command in a file named after it, on a single-threaded runtime.

mod error;
mod export;
mod import;
mod interrupt;
mod list;
mod output;
mod progress;
mod pull;
mod remove;
mod size;

pub(crate) use self::error::ImagesError;
pub(crate) use self::export::{ExportArgs, export};
pub(crate) use self::import::{ImportArgs, import};
pub(crate) use self::list::{ListArgs, list};
pub(crate) use self::pull::{PullArgs, pull};
pub(crate) use self::remove::{RemoveArgs, remove};

//! CNI, the Container Network Interface (specification 1.1): networks that the node's administrator
//! configured, made by plugins, which are programs.
//!
//! ```text
//!  load.rs ── list.rs       a network: a list of plugins, from a folder of files
//!     └─ add | check | del | status | gc     one verb over the list
//!           └─ invoke.rs    one run of one plugin, bounded in time and output
//!  result.rs                what ADD answers
//! ```
//!
//! Nothing here knows of sandboxes or of microVMs. Plugins are the administrator's and run as root:
//! they are trusted not to be malicious, and with nothing else.

mod add;
mod attachment;
mod check;
mod del;
mod gc;
mod invoke;
mod list;
mod load;
mod result;
mod status;
mod version;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use self::attachment::Attachment;
pub(crate) use self::invoke::PluginError;
pub(crate) use self::list::Network;
pub(crate) use self::load::NoNetwork;
pub(crate) use self::result::{CniResult, ResultError};
use crate::config::CniConfig;

/// Runs plugins.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    /// Where their programs are, tried in order.
    pub(crate) dirs: Vec<PathBuf>,
    /// How long one run may take.
    pub(crate) limit: Duration,
}

impl Plugins {
    /// As it is configured.
    pub(crate) fn new(config: &CniConfig) -> Self {
        Self {
            dirs: config.plugin_dirs.clone(),
            limit: Duration::from_millis(config.timeout_ms),
        }
    }
}

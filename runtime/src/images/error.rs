//! Why a command about images failed.

use std::io;
use std::path::PathBuf;

use tonic::Status;

use crate::client::ClientError;
use crate::image::LayoutError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImagesError {
    /// The daemon cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon refused.
    #[error("{} ({:?})", .0.message(), .0.code())]
    Call(Box<Status>),
    /// The daemon's answer ended too early.
    #[error("the daemon ended its answer too early")]
    Cut,
    /// The archive to import.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The archive to export.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A signal asked the command to end.
    #[error("interrupted")]
    Interrupted,
    /// Signals cannot be received.
    #[error("listening for signals")]
    Signals(#[source] io::Error),
    /// An archive on a terminal helps nobody.
    #[error("standard output is a terminal: redirect it, or name a file with --output")]
    Terminal,
    /// Some of several failed, and was told.
    #[error("{failed} of {all} could not be removed")]
    Some {
        /// How many failed.
        failed: usize,
        /// How many there were.
        all: usize,
    },
}

impl ImagesError {
    pub(super) fn file(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }
}

impl From<Status> for ImagesError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

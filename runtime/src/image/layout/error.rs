//! Why a layout cannot be used.

use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    /// A file.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: io::Error,
    },
    /// A file of the folder to make.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why it cannot be written.
        #[source]
        source: io::Error,
    },
    /// The archive is malformed.
    #[error("{} is no archive of an image layout: {reason}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no `index.json`, or it is not one.
    #[error("{}: index.json: {reason}", path.display())]
    Index {
        /// The folder or archive.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing is in it.
    #[error("there is no image in it")]
    Empty,
    /// One name is not enough.
    #[error("{0} images are in it: one name is not enough")]
    Several(usize),
    /// An image has no name.
    #[error("the image {0} has no whole name in it: say one with --name")]
    Nameless(String),
    /// The socket for the daemon cannot be made.
    #[error("listening on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl LayoutError {
    pub(super) fn read(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    pub(super) fn write(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}

//! What can go wrong with a container.

use std::path::PathBuf;
use std::time::Duration;

use crate::field::FieldError;
use crate::image::ImageError;
use crate::record::RecordError;
use crate::sandbox::SandboxError;
use crate::table::{LookupError, NameTaken};
use crate::vm::{StreamError, VmError};

/// Why something asked of a container did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// The request asks for something wrong or impossible.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// No container, or more than one, answers to the id.
    #[error("container not found: {0}")]
    Lookup(#[from] LookupError),
    /// Another container of the sandbox has the name and attempt.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// The image has not been pulled.
    #[error("image {0:?} is not on this node")]
    NoImage(String),
    /// The image's disk.
    #[error("opening the disk of the container's image")]
    Image(#[from] ImageError),
    /// Not in this state.
    #[error("container {id} is {state}: it cannot be {verb}")]
    State {
        /// Which.
        id: String,
        /// What it is.
        state: &'static str,
        /// What was asked for.
        verb: &'static str,
    },
    /// The process could not be started; the container has exited.
    #[error("container {id} could not be started")]
    Start {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: VmError,
    },
    /// A further process could not be started in a running container.
    #[error("the command could not be started in container {id}")]
    Exec {
        /// Which.
        id: String,
        /// Why.
        #[source]
        source: VmError,
    },
    /// Killed, and still there.
    #[error("container {id} did not end within {} s of being killed", limit.as_secs())]
    Unkillable {
        /// Which.
        id: String,
        /// How long it had.
        limit: Duration,
    },
    /// A command took longer than the caller wants to wait. It has been killed.
    #[error("the command did not end within {} s", .0.as_secs())]
    ExecTimeout(Duration),
    /// The caller went away before the work was done, and it was undone.
    #[error("the request was cancelled")]
    Cancelled,
    /// The sandbox it is in.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The machine it is in.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl ContainerError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

impl From<StreamError> for ContainerError {
    fn from(error: StreamError) -> Self {
        Self::Vm(error.into())
    }
}

//! Containers.

use std::sync::Arc;

use crate::id::{ContainerId, ExecId};
use crate::vm::ProcessStream;

/// What can go wrong with a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// No such container.
    #[error("container {0:?} does not exist")]
    NotFound(String),
}

/// Every container of this node.
#[derive(Debug)]
pub(crate) struct Containers {}

/// A process to run in a container beside its own.
#[derive(Debug, Clone)]
pub(crate) struct ExecRequest {
    /// The command and its arguments; not empty.
    pub(crate) args: Vec<String>,
    /// Give it a terminal.
    pub(crate) terminal: bool,
    /// Keep its standard input open for the stream.
    pub(crate) stdin: bool,
}

/// A process that runs in a container beside its own.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Its streams; the one reader of its output.
    pub(crate) stream: ProcessStream,
    /// How to wait for it and end it.
    pub(crate) process: ExecProcess,
}

/// The handle of an exec. Dropped before the process has exited, it kills the process.
#[derive(Debug)]
pub(crate) struct ExecProcess {
    id: ExecId,
}

impl Containers {
    /// The container that an id, or a unique beginning of one, stands for.
    ///
    /// # Errors
    ///
    /// [`ContainerError::NotFound`] when there is none, or more than one.
    pub(crate) fn resolve(&self, id: &str) -> Result<ContainerId, ContainerError> {
        Err(ContainerError::NotFound(id.to_owned()))
    }

    /// A copy of a running container's output from now on, and its standard input.
    ///
    /// # Errors
    ///
    /// When the container does not run or the agent refuses.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        id: &ContainerId,
        _stdin: bool,
    ) -> Result<ProcessStream, ContainerError> {
        Err(ContainerError::NotFound(id.to_string()))
    }

    /// Starts a process in a running container.
    ///
    /// # Errors
    ///
    /// When the container does not run or the command cannot be started.
    pub(crate) async fn exec(
        self: &Arc<Self>,
        id: &ContainerId,
        _request: ExecRequest,
    ) -> Result<Exec, ContainerError> {
        Err(ContainerError::NotFound(id.to_string()))
    }
}

impl ExecProcess {
    /// Waits until the process has exited, forgets it and returns its exit code, 0 to 255.
    ///
    /// # Errors
    ///
    /// When the machine ends first.
    pub(crate) async fn wait(self) -> Result<i32, ContainerError> {
        Err(ContainerError::NotFound(self.id.to_string()))
    }
}

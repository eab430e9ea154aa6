//! Further processes in a running container.

use std::sync::Arc;

use isopod_proto::agent::{ExecProcessRequest, StreamOpen, StreamRole};

use super::{ContainerError, ContainerState, Containers, Signal};
use crate::field::FieldError;
use crate::id::{ContainerId, ExecId};
use crate::vm::{ProcessStream, Vm, VmError};

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

/// The handle of an exec. Dropped before the process was waited for, it kills the process.
#[derive(Debug)]
pub(crate) struct ExecProcess {
    vm: Arc<Vm>,
    container_id: ContainerId,
    id: ExecId,
    waited: bool,
}

impl Containers {
    /// Starts a process in a running container.
    ///
    /// # Errors
    ///
    /// When the container does not run or the command cannot be started.
    pub(crate) async fn exec(
        self: &Arc<Self>,
        id: &ContainerId,
        request: ExecRequest,
    ) -> Result<Exec, ContainerError> {
        if request.args.first().is_none_or(String::is_empty) {
            return Err(FieldError::new("cmd", "is empty").into());
        }
        let container = self.find(id.as_str())?;
        if !matches!(container.state(), ContainerState::Running { .. }) {
            return Err(container.wrong_state("exec'd into"));
        }
        let vm = container.sandbox.running_vm()?;
        let exec_id = ExecId::random().map_err(ContainerError::io("reading", "/dev/urandom"))?;
        let asked = ExecProcessRequest {
            container_id: container.id.to_string(),
            exec_id: exec_id.to_string(),
            args: request.args,
            terminal: request.terminal,
            stdin: request.stdin,
            ..Default::default()
        };
        // Held before it is there: a caller that leaves in the middle must not leave it behind.
        let process = ExecProcess {
            vm: Arc::clone(&vm),
            container_id: container.id.clone(),
            id: exec_id,
            waited: false,
        };
        if let Err(error) = vm.exec(&asked).await {
            return Err(process.never_started(error));
        }
        let stream = vm
            .open_stream(&StreamOpen {
                container_id: container.id.to_string(),
                exec_id: process.id.as_str().to_owned(),
                role: StreamRole::STREAM_ROLE_PRIMARY.into(),
                stdin: request.stdin,
                ..Default::default()
            })
            .await?;
        Ok(Exec { stream, process })
    }
}

impl ExecProcess {
    /// Waits until the process has exited and returns its exit code, 0 to 255.
    ///
    /// # Errors
    ///
    /// When the machine ends first, or its agent cannot be reached.
    pub(super) async fn exited(&self) -> Result<i32, ContainerError> {
        let exit = self.vm.wait(&self.container_id, Some(&self.id)).await?;
        Ok(exit.code)
    }

    /// Waits until the process has exited, forgets it and returns its exit code, 0 to 255. Its
    /// output has been read to the end. Dropped before that, it kills the process.
    ///
    /// # Errors
    ///
    /// When the machine ends first, or its agent cannot be reached.
    pub(crate) async fn wait(mut self) -> Result<i32, ContainerError> {
        let code = self.exited().await?;
        self.waited = true;
        self.vm.delete_process(&self.container_id, &self.id).await?;
        Ok(code)
    }

    /// Kills the process and all that it has started, waits until the process itself is gone, and
    /// forgets it.
    ///
    /// # Errors
    ///
    /// When the machine ends first, or its agent cannot be reached.
    pub(crate) async fn kill(mut self) -> Result<(), ContainerError> {
        self.waited = true;
        let ended = end(&self.vm, &self.container_id, &self.id).await;
        Ok(ended?)
    }

    /// A refusal leaves nothing to kill; after anything else the process may be there.
    fn never_started(mut self, error: VmError) -> ContainerError {
        self.waited = matches!(error, VmError::Refused { .. } | VmError::Ended(_));
        let id = self.container_id.to_string();
        ContainerError::Exec { id, source: error }
    }
}

impl Drop for ExecProcess {
    fn drop(&mut self) {
        if self.waited || self.vm.end_now().is_some() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let vm = Arc::clone(&self.vm);
        let (container_id, id) = (self.container_id.clone(), self.id.clone());
        runtime.spawn(async move {
            if let Err(error) = end(&vm, &container_id, &id).await {
                tracing::debug!(%container_id, error = %error, "could not end an abandoned exec");
            }
        });
    }
}

/// Kills a process and all that it has started; one that is not there has ended.
async fn end(vm: &Vm, container_id: &ContainerId, id: &ExecId) -> Result<(), VmError> {
    let ended = async {
        vm.signal(container_id, Some(id), Signal::KILL.number(), true)
            .await?;
        vm.wait(container_id, Some(id)).await?;
        vm.delete_process(container_id, id).await
    };
    match ended.await {
        Err(error) if error.is_not_found() => Ok(()),
        ended => ended,
    }
}

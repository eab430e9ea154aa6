//! `Exec`: answers with a URL at which one client starts a command and gets its streams.

use std::sync::Arc;

use isopod_proto::cri::{ExecRequest, ExecResponse};

use super::Cri;
use super::error::CriError;
use crate::container::{self, ContainerState};
use crate::field::FieldError;
use crate::streaming::{OpenError, Process, Streams, Takes};

pub(super) fn exec(cri: &Cri, request: ExecRequest) -> Result<ExecResponse, CriError> {
    let container = cri.containers.find(&request.container_id)?;
    if request.cmd.first().is_none_or(String::is_empty) {
        return Err(FieldError::new("cmd", "is empty").into());
    }
    let streams = checked(Streams {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    })?;
    if !matches!(container.state(), ContainerState::Running { .. }) {
        return Err(container.wrong_state("exec'd into").into());
    }
    let (containers, id) = (Arc::clone(&cri.containers), container.id.clone());
    let url = cri.streaming.exec_url(streams, async move || {
        let asked = container::ExecRequest {
            args: request.cmd,
            terminal: request.tty,
            stdin: request.stdin,
        };
        let exec = containers.exec(&id, asked).await?;
        let exit = async move { exec.process.wait().await.map_err(OpenError::from) };
        Ok(Process {
            stream: exec.stream,
            takes: Takes {
                stdin: request.stdin,
                resize: request.tty,
            },
            exit: Some(Box::pin(exit)),
        })
    })?;
    Ok(ExecResponse { url })
}

/// What the CRI says of `ExecRequest` and `AttachRequest`: at least one stream, and no standard
/// error beside a terminal, which has it all in one.
pub(super) fn checked(streams: Streams) -> Result<Streams, FieldError> {
    if !(streams.stdin || streams.stdout || streams.stderr) {
        let reason = "one of stdin, stdout and stderr must be set";
        return Err(FieldError::new("stdin", reason));
    }
    if streams.tty && streams.stderr {
        return Err(FieldError::new("stderr", "cannot be set with tty"));
    }
    Ok(streams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_stream_at_all_and_stderr_beside_a_terminal_are_refused() {
        let none = Streams {
            stdin: false,
            stdout: false,
            stderr: false,
            tty: false,
        };
        assert_eq!(checked(none).unwrap_err().field, "stdin");
        let both = Streams {
            stderr: true,
            tty: true,
            ..none
        };
        assert_eq!(checked(both).unwrap_err().field, "stderr");
        let stderr = Streams {
            stderr: true,
            ..none
        };
        assert_eq!(checked(stderr), Ok(stderr));
    }
}

//! `Attach`: answers with a URL at which one client gets a container's streams from then on. A
//! created container has them too: who attaches before the start misses nothing.

use std::sync::Arc;

use isopod_proto::cri::{AttachRequest, AttachResponse};

use super::Cri;
use super::error::CriError;
use super::exec::checked;
use crate::container::ContainerState;
use crate::streaming::{Process, Streams, Takes};

pub(super) fn attach(cri: &Cri, request: &AttachRequest) -> Result<AttachResponse, CriError> {
    let container = cri.containers.find(&request.container_id)?;
    let asked = checked(Streams {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    })?;
    if matches!(container.state(), ContainerState::Exited(_)) {
        return Err(container.wrong_state("attached to").into());
    }
    // Whether there is a terminal and a standard input was decided when the container was created.
    let takes = Takes {
        stdin: asked.stdin && container.config.stdin,
        resize: container.config.tty,
    };
    let (containers, id) = (Arc::clone(&cri.containers), container.id.clone());
    let url = cri.streaming.attach_url(asked, async move || {
        let stream = containers.attach(&id, takes.stdin).await?;
        Ok(Process {
            stream,
            takes,
            exit: None,
        })
    })?;
    Ok(AttachResponse { url })
}

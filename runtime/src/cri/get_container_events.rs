//! `GetContainerEvents`: what happens to pods and containers from now on.
//!
//! As with containerd, a sandbox has events too, under its own id, and each event has the pod's status
//! and those of its containers as they were. Nothing that happened before is told: a client listens
//! first and lists then.

use std::sync::Weak;

use futures_util::{Stream, stream};
use isopod_proto::cri::ContainerEventResponse;
use tonic::Status;

use super::error::CriError;
use super::{Cri, container_status, pod_sandbox_status};
use crate::container::Containers;
use crate::events::{Describe, Events};

pub(super) fn get_container_events(
    cri: &Cri,
) -> Result<impl Stream<Item = Result<ContainerEventResponse, Status>> + Send + use<>, CriError> {
    let listener = cri.events.listen()?;
    tracing::debug!("listening to events");
    Ok(stream::unfold(listener, |mut listener| async {
        let event = match listener.next().await? {
            Ok(event) => Ok(ContainerEventResponse::clone(&event)),
            Err(error) => Err(CriError::from(error).into()),
        };
        Some((event, listener))
    }))
}

/// Lets events describe pods as the status methods do.
pub(super) fn describe_pods(events: &Events, containers: Weak<Containers>) {
    let describe: Box<Describe> = Box::new(move |sandbox| {
        let containers = containers.upgrade().map(|all| all.of_sandbox(&sandbox.id));
        let statuses = containers
            .unwrap_or_default()
            .iter()
            .map(|container| container_status::status(container))
            .collect();
        (pod_sandbox_status::status(sandbox), statuses)
    });
    events.describe_by(describe);
}

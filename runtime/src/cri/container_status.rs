//! `ContainerStatus`: everything about one container.

use std::collections::HashMap;
use std::error::Error;

use isopod_proto::cri;
use isopod_proto::cri::{ContainerStatusRequest, ContainerStatusResponse};
use serde::Serialize;
use serde_json::{Value, json};

use super::Cri;
use super::error::CriError;
use crate::chain::chain;
use crate::container::{Container, ContainerExit, ContainerState, Mount};

/// What kind of runtime verbose statuses speak of.
pub(super) const RUNTIME_TYPE: &str = "isopod";

pub(super) async fn container_status(
    cri: &Cri,
    request: &ContainerStatusRequest,
) -> Result<ContainerStatusResponse, CriError> {
    let container = cri.containers.find(&request.container_id)?;
    let info = match request.verbose {
        true => HashMap::from([("info".to_owned(), info(cri, &container).await)]),
        false => HashMap::new(),
    };
    Ok(ContainerStatusResponse {
        status: Some(status(&container)),
        info,
    })
}

pub(super) fn metadata(container: &Container) -> cri::ContainerMetadata {
    let config = &container.config;
    cri::ContainerMetadata {
        name: config.name.clone(),
        attempt: config.attempt,
    }
}

pub(super) fn image(container: &Container) -> cri::ImageSpec {
    let config = &container.config;
    cri::ImageSpec {
        image: config.image.clone(),
        user_specified_image: config.user_specified_image.clone(),
        ..Default::default()
    }
}

pub(super) fn status(container: &Container) -> cri::ContainerStatus {
    let config = &container.config;
    let state = container.state();
    let user = &container.user;
    let mut status = cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(metadata(container)),
        state: state.to_cri().into(),
        created_at: container.created_at_ns,
        image: Some(image(container)),
        image_ref: config.image_ref.clone(),
        image_id: config.image_id.clone(),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        mounts: config.mounts.iter().map(Mount::to_cri).collect(),
        log_path: container
            .log_file()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        resources: Some(cri::ContainerResources {
            linux: Some(container.resources().to_cri()),
            windows: None,
        }),
        user: Some(cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().map(|group| (*group).into()).collect(),
            }),
        }),
        stop_signal: config.stop_signal.to_cri().into(),
        ..Default::default()
    };
    match state {
        ContainerState::Created => {}
        ContainerState::Running { started_at_ns } => status.started_at = started_at_ns,
        ContainerState::Exited(exit) => add_exit(&mut status, exit),
    }
    status
}

fn add_exit(status: &mut cri::ContainerStatus, exit: ContainerExit) {
    status.started_at = exit.started_at_ns;
    status.finished_at = exit.finished_at_ns;
    status.exit_code = exit.code;
    status.reason = exit.reason;
    status.message = exit.message;
}

/// Under containerd's names where it has one. What runs a container on the host is its pod's VMM, and
/// that is its `pid` here; 0 while it does not run. `runtimeSpec` is what the guest was asked for:
/// `resources` says what became of it.
async fn info(cri: &Cri, container: &Container) -> String {
    let sandbox = &container.sandbox;
    let runs = matches!(container.state(), ContainerState::Running { .. });
    let vmm = sandbox.vm().filter(|_| runs);
    let spec = cri.containers.spec(container).await;
    json!({
        "sandboxID": sandbox.id,
        "pid": vmm.map_or(0, |vm| vm.process_id().pid),
        "runtimeType": RUNTIME_TYPE,
        "runtimeHandler": sandbox.handler,
        "user": container.user,
        "resources": container.resources(),
        "tty": container.config.tty,
        "stdin": container.config.stdin,
        "config": container.config,
        "runtimeSpec": unless_unavailable(spec),
    })
    .to_string()
}

/// A part of a verbose status; why it is not there, otherwise.
pub(super) fn unless_unavailable<T: Serialize, E: Error>(part: Result<T, E>) -> Value {
    match part {
        Ok(part) => json!(part),
        Err(error) => json!({ "unavailable": chain(&error) }),
    }
}

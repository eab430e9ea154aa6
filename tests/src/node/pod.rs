//! Pods and containers in the words of tests.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ExecSyncResponse,
    ImageSpec, PodSandboxConfig, PodSandboxMetadata,
};

use super::{Node, image};
use crate::log::{Line, parse};
use crate::wait::wait_for;

/// How long a container may take to end or to print what a test waits for.
const CONTAINER_LIMIT: Duration = Duration::from_secs(240);

/// A pod of this name, logging into the node's folder.
#[must_use]
pub fn pod_config(node: &Node, name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: node.log_directory(name).display().to_string(),
        ..PodSandboxConfig::default()
    }
}

/// The same pod, whose containers may be privileged.
#[must_use]
pub fn privileged_pod(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    config
}

/// The same container, privileged, so that it can set the guest's kernel up. Its pod has to be a
/// [`privileged_pod`].
#[must_use]
pub fn privileged(mut config: ContainerConfig) -> ContainerConfig {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    config
}

/// A container of this name that runs `command` in one of the test images.
#[must_use]
pub fn container_config(name: &str, image_name: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: image(image_name),
            ..ImageSpec::default()
        }),
        command: command.iter().map(ToString::to_string).collect(),
        log_path: format!("{name}.log"),
        ..ContainerConfig::default()
    }
}

/// A busybox container that runs a shell script.
#[must_use]
pub fn shell(name: &str, script: &str) -> ContainerConfig {
    container_config(name, "busybox", &["/bin/sh", "-c", script])
}

/// The ways most tests use a node.
#[expect(clippy::missing_errors_doc, reason = "each fails when the daemon does")]
impl Node {
    /// Pulls busybox and runs a pod of this name; its id.
    pub fn busybox_pod(&self, name: &str) -> Result<String> {
        self.cri().pull(&image("busybox"))?;
        Ok(self.cri().run_pod(pod_config(self, name))?)
    }

    /// Creates a container; its id. The pod must have been made by [`pod_config`].
    pub fn create(&self, pod: &str, config: ContainerConfig) -> Result<String> {
        let metadata = self
            .cri()
            .pod_status(pod)?
            .status
            .and_then(|status| status.metadata);
        let name = metadata.context("the pod has no metadata")?.name;
        Ok(self.cri().create(pod, config, pod_config(self, &name))?)
    }

    /// Creates and starts a container; its id.
    pub fn start(&self, pod: &str, config: ContainerConfig) -> Result<String> {
        let id = self.create(pod, config)?;
        self.cri().start(&id)?;
        Ok(id)
    }

    /// A pod whose only container is privileged and runs a script with busybox; the pod's and the
    /// container's ids.
    pub fn start_privileged(&self, name: &str, script: &str) -> Result<(String, String)> {
        self.cri().pull(&image("busybox"))?;
        let config = privileged_pod(pod_config(self, name));
        let pod = self.cri().run_pod(config.clone())?;
        let container = privileged(shell("main", script));
        let id = self.cri().create(&pod, container, config)?;
        self.cri().start(&id)?;
        Ok((pod, id))
    }

    /// Runs a shell script in a new busybox container to its end; how it ended, and its log.
    pub fn run_script(
        &self,
        pod: &str,
        name: &str,
        script: &str,
    ) -> Result<(ContainerStatus, Vec<Line>)> {
        let id = self.start(pod, shell(name, script))?;
        let status = self.wait_exited(&id)?;
        let log = self.container_log(&id)?;
        Ok((status, log))
    }

    /// Waits until the container has exited.
    pub fn wait_exited(&self, id: &str) -> Result<ContainerStatus> {
        let exited = |status: &ContainerStatus| status.state() == ContainerState::ContainerExited;
        wait_for("the container to exit", CONTAINER_LIMIT, || {
            self.cri()
                .container_status(id)
                .map(|it| exited(&it).then_some(it))
                .transpose()
        })?
        .context("ContainerStatus")
    }

    /// The container's log, line by line.
    pub fn container_log(&self, id: &str) -> Result<Vec<Line>> {
        let path = self.cri().container_status(id)?.log_path;
        parse(&std::fs::read(&path).with_context(|| format!("reading {path}"))?)
    }

    /// Waits until the container's log holds `text`.
    pub fn wait_logged(&self, id: &str, text: &str) -> Result<()> {
        let path = self.cri().container_status(id)?.log_path;
        wait_for(&format!("{text:?} in the log"), CONTAINER_LIMIT, || {
            let log = std::fs::read(&path).unwrap_or_default();
            String::from_utf8_lossy(&log).contains(text).then_some(())
        })
    }

    /// Runs a shell script in a running container; it must succeed. Its standard output.
    pub fn exec(&self, container: &str, script: &str) -> Result<Vec<u8>> {
        let answer = self.exec_any(container, script)?;
        ensure!(
            answer.exit_code == 0,
            "{script:?} exited with {}: {}",
            answer.exit_code,
            String::from_utf8_lossy(&answer.stderr)
        );
        Ok(answer.stdout)
    }

    /// Runs a shell script in a running container.
    pub fn exec_any(&self, container: &str, script: &str) -> Result<ExecSyncResponse> {
        Ok(self.cri().exec(container, &["/bin/sh", "-c", script], 0)?)
    }
}

//! A run's pod, through the daemon's CRI.

use std::time::Duration;

use isopod_proto::cri::{
    AttachRequest, ContainerState, ContainerStatusRequest, CreateContainerRequest, ImageSpec,
    ImageStatusRequest, ListPodSandboxRequest, PodSandboxConfig, PodSandboxFilter,
    PullImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest,
};
use tokio::time::sleep;

use super::args::{Args, Pull};
use super::error::RunError;
use super::spec::{self, RUN_LABEL};
use crate::client::Client;

/// How long to wait between two looks at a container that is about to exit: at first, at last.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_LAST: Duration = Duration::from_millis(200);

/// A run's pod. What it has made is found again by its label.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    client: Client,
    run_id: String,
}

impl Pod {
    pub(super) fn new(client: Client, run_id: String) -> Self {
        Self { client, run_id }
    }

    /// The image's id, pulled as the arguments say.
    pub(super) async fn image(&mut self, args: &Args) -> Result<String, RunError> {
        let spec = ImageSpec {
            image: args.image.clone(),
            runtime_handler: args.runtime.clone(),
            ..Default::default()
        };
        if args.pull != Pull::Always {
            let request = ImageStatusRequest {
                image: Some(spec.clone()),
                verbose: false,
            };
            let status = self.client.image.image_status(request).await;
            let status = status.map_err(RunError::call("looking for the image"))?;
            match status.into_inner().image {
                Some(image) => return Ok(image.id),
                None if args.pull == Pull::Never => {
                    return Err(RunError::NoImage(args.image.clone()));
                }
                None => eprintln!("isopod: pulling {}", args.image),
            }
        }
        let request = PullImageRequest {
            image: Some(spec),
            ..Default::default()
        };
        let pulled = self.client.image.pull_image(request).await;
        let pulled = pulled.map_err(RunError::call("pulling the image"))?;
        Ok(pulled.into_inner().image_ref)
    }

    /// Starts the sandbox and returns its id and its configuration.
    pub(super) async fn sandbox(
        &mut self,
        args: &Args,
    ) -> Result<(String, PodSandboxConfig), RunError> {
        let config = spec::sandbox(args, &self.run_id);
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: args.runtime.clone(),
        };
        let answer = self.client.runtime.run_pod_sandbox(request).await;
        let answer = answer.map_err(RunError::call("starting the sandbox"))?;
        Ok((answer.into_inner().pod_sandbox_id, config))
    }

    /// Creates the container and returns its id.
    pub(super) async fn container(
        &mut self,
        args: &Args,
        image: &str,
        (sandbox_id, sandbox_config): (String, PodSandboxConfig),
    ) -> Result<String, RunError> {
        let environment = |name: &str| std::env::var(name).ok();
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox_id,
            config: Some(spec::container(args, &self.run_id, image, environment)),
            sandbox_config: Some(sandbox_config),
        };
        let answer = self.client.runtime.create_container(request).await;
        let answer = answer.map_err(RunError::call("creating the container"))?;
        Ok(answer.into_inner().container_id)
    }

    /// Where the container's streams are.
    pub(super) async fn attach_url(
        &mut self,
        args: &Args,
        container_id: &str,
    ) -> Result<String, RunError> {
        let request = AttachRequest {
            container_id: container_id.to_owned(),
            stdin: args.interactive,
            tty: args.tty,
            stdout: true,
            stderr: !args.tty,
        };
        let answer = self.client.runtime.attach(request).await;
        Ok(answer
            .map_err(RunError::call("attaching to the container"))?
            .into_inner()
            .url)
    }

    pub(super) async fn start(&mut self, container_id: &str) -> Result<(), RunError> {
        let request = StartContainerRequest {
            container_id: container_id.to_owned(),
        };
        let answer = self.client.runtime.start_container(request).await;
        answer
            .map(drop)
            .map_err(|status| RunError::Start(Box::new(status)))
    }

    /// Asks the command to end, and kills it when it has not after `patience`.
    pub(super) async fn stop(
        &mut self,
        container_id: &str,
        patience: Duration,
    ) -> Result<(), RunError> {
        let request = StopContainerRequest {
            container_id: container_id.to_owned(),
            timeout: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        };
        let answer = self.client.runtime.stop_container(request).await;
        answer
            .map(drop)
            .map_err(RunError::call("stopping the container"))
    }

    /// Waits until the container has exited and returns its exit code.
    pub(super) async fn exit_code(&mut self, container_id: &str) -> Result<u8, RunError> {
        let mut pause = LOOK_FIRST;
        loop {
            let request = ContainerStatusRequest {
                container_id: container_id.to_owned(),
                verbose: false,
            };
            let answer = self.client.runtime.container_status(request).await;
            let answer = answer.map_err(RunError::call("asking for the exit code"))?;
            let status = answer.into_inner().status.ok_or(RunError::Answer {
                action: "ContainerStatus",
                missing: "status",
            })?;
            if status.state() == ContainerState::ContainerExited {
                return u8::try_from(status.exit_code).map_err(|_range| RunError::Answer {
                    action: "ContainerStatus",
                    missing: "exit code from 0 to 255",
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// Stops and removes whatever the run has made. Harmless when that is nothing.
    pub(super) async fn remove(&mut self) -> Result<(), RunError> {
        for pod_sandbox_id in self.sandboxes().await? {
            let request = StopPodSandboxRequest {
                pod_sandbox_id: pod_sandbox_id.clone(),
            };
            let answer = self.client.runtime.stop_pod_sandbox(request).await;
            answer.map_err(RunError::call("stopping the sandbox"))?;
            let request = RemovePodSandboxRequest { pod_sandbox_id };
            let answer = self.client.runtime.remove_pod_sandbox(request).await;
            answer.map_err(RunError::call("removing the sandbox"))?;
        }
        Ok(())
    }

    /// The ids of the run's sandboxes: one, or none.
    pub(super) async fn sandboxes(&mut self) -> Result<Vec<String>, RunError> {
        let filter = PodSandboxFilter {
            label_selector: [(RUN_LABEL.to_owned(), self.run_id.clone())].into(),
            ..Default::default()
        };
        let request = ListPodSandboxRequest {
            filter: Some(filter),
        };
        let answer = self.client.runtime.list_pod_sandbox(request).await;
        let answer = answer.map_err(RunError::call("listing the sandboxes"))?;
        let items = answer.into_inner().items;
        Ok(items.into_iter().map(|sandbox| sandbox.id).collect())
    }
}

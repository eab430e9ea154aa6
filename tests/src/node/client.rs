//! A CRI client for what crictl cannot say: exact requests, exact status codes.
//!
//! Blocking, with a connection and a runtime of its own per call: nothing stays open between calls,
//! and any thread can use it.

use std::future::Future;
use std::time::Duration;

use isopod_proto::cri::image_service_client::ImageServiceClient;
use isopod_proto::cri::runtime_service_client::RuntimeServiceClient;
use isopod_proto::cri::{
    AuthConfig, Container, ContainerConfig, ContainerEventResponse, ContainerFilter,
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse,
    GetEventsRequest, Image, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec,
    ImageStatusRequest, ListContainerStatsRequest, ListContainersRequest, ListImagesRequest,
    ListPodSandboxRequest, ListPodSandboxStatsRequest, PodSandbox, PodSandboxConfig,
    PodSandboxFilter, PodSandboxStats, PodSandboxStatsFilter, PodSandboxStatsRequest,
    PodSandboxStatusRequest, PodSandboxStatusResponse, PortForwardRequest, PullImageRequest,
    RemoveContainerRequest, RemoveImageRequest, RemovePodSandboxRequest, ReopenContainerLogRequest,
    RunPodSandboxRequest, StartContainerRequest, StatusRequest, StatusResponse,
    StopContainerRequest, StopPodSandboxRequest, VersionRequest, VersionResponse,
};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

use super::Node;

/// How long any call may take, unless the test waits for a time-out.
const CALL_LIMIT: Duration = Duration::from_secs(300);

/// Largest answer: the output of a command in a container.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;

/// A CRI client of one node.
#[derive(Debug)]
pub struct Client<'a> {
    node: &'a Node,
}

impl<'a> Client<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        Self { node }
    }

    /// Calls anything of the runtime service.
    ///
    /// # Errors
    /// The daemon's answer; `Unavailable` without a daemon; a panic when it does not answer at all.
    pub fn runtime<T, F>(
        &self,
        call: impl FnOnce(RuntimeServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(|channel| {
            call(RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
        })
    }

    /// Calls anything of the image service.
    ///
    /// # Errors
    /// As [`Self::runtime`].
    pub fn images<T, F>(
        &self,
        call: impl FnOnce(ImageServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(|channel| {
            call(ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
        })
    }

    fn call<T, F>(&self, call: impl FnOnce(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let socket = self.node.socket();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs a few descriptors and no thread");
        runtime.block_on(async move {
            let connect = tower::service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move {
                    tokio::net::UnixStream::connect(socket)
                        .await
                        .map(hyper_util::rt::TokioIo::new)
                }
            });
            let channel = Endpoint::from_static("http://isopod.invalid")
                .connect_with_connector(connect)
                .await
                .map_err(|error| Status::unavailable(format!("connecting: {error:?}")))?;
            match tokio::time::timeout(CALL_LIMIT, call(channel)).await {
                Ok(answer) => answer.map(Response::into_inner),
                Err(_) => panic!(
                    "the daemon did not answer within {} s",
                    CALL_LIMIT.as_secs()
                ),
            }
        })
    }
}

/// One method per CRI call that tests make often. Errors are the daemon's status.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
impl Client<'_> {
    /// `Version`.
    pub fn version(&self) -> Result<VersionResponse, Status> {
        let request = VersionRequest {
            version: "v1".into(),
        };
        self.runtime(async |mut cri| cri.version(request).await)
    }

    /// `Status`, with the daemon's extra information.
    pub fn status(&self) -> Result<StatusResponse, Status> {
        self.runtime(async |mut cri| cri.status(StatusRequest { verbose: true }).await)
    }

    /// `RunPodSandbox`; the id.
    pub fn run_pod(&self, config: PodSandboxConfig) -> Result<String, Status> {
        self.run_pod_with("isopod", config)
    }

    /// `RunPodSandbox` with a runtime handler.
    pub fn run_pod_with(&self, handler: &str, config: PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler.to_owned(),
        };
        let id = self
            .runtime(async |mut cri| cri.run_pod_sandbox(request).await)?
            .pod_sandbox_id;
        self.node.remember(&id);
        Ok(id)
    }

    /// `GetContainerEvents`: hears events until `enough` of them were heard. `listening` is called as
    /// soon as none can be missed.
    pub fn events(
        &self,
        listening: impl FnOnce(),
        mut enough: impl FnMut(&[ContainerEventResponse]) -> bool,
    ) -> Result<Vec<ContainerEventResponse>, Status> {
        self.runtime(async |mut cri| {
            let answer = cri.get_container_events(GetEventsRequest {}).await?;
            let mut stream = answer.into_inner();
            listening();
            let mut heard = Vec::new();
            while !enough(&heard) {
                match stream.message().await? {
                    Some(event) => heard.push(event),
                    None => break,
                }
            }
            Ok(Response::new(heard))
        })
    }

    /// `ContainerStats`.
    pub fn container_stats(&self, id: &str) -> Result<ContainerStats, Status> {
        let request = ContainerStatsRequest {
            container_id: id.to_owned(),
        };
        let answer = self.runtime(async |mut cri| cri.container_stats(request).await)?;
        answer
            .stats
            .ok_or_else(|| Status::data_loss("no statistics"))
    }

    /// `ListContainerStats`.
    pub fn all_container_stats(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Result<Vec<ContainerStats>, Status> {
        let request = ListContainerStatsRequest { filter };
        self.runtime(async |mut cri| cri.list_container_stats(request).await)
            .map(|answer| answer.stats)
    }

    /// `PodSandboxStats`.
    pub fn pod_stats(&self, id: &str) -> Result<PodSandboxStats, Status> {
        let request = PodSandboxStatsRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer = self.runtime(async |mut cri| cri.pod_sandbox_stats(request).await)?;
        answer
            .stats
            .ok_or_else(|| Status::data_loss("no statistics"))
    }

    /// `ListPodSandboxStats`.
    pub fn all_pod_stats(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodSandboxStats>, Status> {
        let request = ListPodSandboxStatsRequest { filter };
        self.runtime(async |mut cri| cri.list_pod_sandbox_stats(request).await)
            .map(|answer| answer.stats)
    }

    /// `StopPodSandbox`.
    pub fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime(async |mut cri| cri.stop_pod_sandbox(request).await)
            .map(|_| ())
    }

    /// `RemovePodSandbox`.
    pub fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        self.runtime(async |mut cri| cri.remove_pod_sandbox(request).await)
            .map(|_| ())
    }

    /// `PodSandboxStatus`.
    pub fn pod_status(&self, id: &str) -> Result<PodSandboxStatusResponse, Status> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        self.runtime(async |mut cri| cri.pod_sandbox_status(request).await)
    }

    /// `ListPodSandbox`.
    pub fn pods(&self, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>, Status> {
        let request = ListPodSandboxRequest { filter };
        Ok(self
            .runtime(async |mut cri| cri.list_pod_sandbox(request).await)?
            .items)
    }

    /// `CreateContainer`; the id.
    pub fn create(
        &self,
        pod: &str,
        config: ContainerConfig,
        pod_config: PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(pod_config),
        };
        let id = self
            .runtime(async |mut cri| cri.create_container(request).await)?
            .container_id;
        self.node.remember(&id);
        Ok(id)
    }

    /// `StartContainer`.
    pub fn start(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime(async |mut cri| cri.start_container(request).await)
            .map(|_| ())
    }

    /// `StopContainer`; the time-out in seconds.
    pub fn stop(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.runtime(async |mut cri| cri.stop_container(request).await)
            .map(|_| ())
    }

    /// `RemoveContainer`.
    pub fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        self.runtime(async |mut cri| cri.remove_container(request).await)
            .map(|_| ())
    }

    /// `ContainerStatus`.
    pub fn container_status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.runtime(async |mut cri| cri.container_status(request).await)?;
        answer
            .status
            .ok_or_else(|| Status::internal("ContainerStatus without a status"))
    }

    /// `ListContainers`.
    pub fn containers(&self, filter: Option<ContainerFilter>) -> Result<Vec<Container>, Status> {
        let request = ListContainersRequest { filter };
        Ok(self
            .runtime(async |mut cri| cri.list_containers(request).await)?
            .containers)
    }

    /// `ExecSync`; the time-out in seconds, 0 for none.
    pub fn exec(
        &self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout,
        };
        self.runtime(async |mut cri| cri.exec_sync(request).await)
    }

    /// `Exec` with all streams and no terminal; where to connect.
    pub fn exec_url(&self, id: &str, command: &[&str]) -> Result<String, Status> {
        let request = ExecRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(ToString::to_string).collect(),
            stdin: true,
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        Ok(self.runtime(async |mut cri| cri.exec(request).await)?.url)
    }

    /// `PortForward`; where to connect.
    pub fn port_forward_url(&self, pod: &str) -> Result<String, Status> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            ..Default::default()
        };
        Ok(self
            .runtime(async |mut cri| cri.port_forward(request).await)?
            .url)
    }

    /// `ReopenContainerLog`.
    pub fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        self.runtime(async |mut cri| cri.reopen_container_log(request).await)
            .map(|_| ())
    }

    /// `PullImage`; the image's reference.
    pub fn pull(&self, image: &str) -> Result<String, Status> {
        self.pull_with(image, None)
    }

    /// `PullImage` with credentials.
    pub fn pull_with(&self, image: &str, auth: Option<AuthConfig>) -> Result<String, Status> {
        let request = PullImageRequest {
            image: Some(spec(image)),
            auth,
            ..PullImageRequest::default()
        };
        Ok(self
            .images(async |mut cri| cri.pull_image(request).await)?
            .image_ref)
    }

    /// `ImageStatus`.
    pub fn image_status(&self, image: &str) -> Result<Option<Image>, Status> {
        let request = ImageStatusRequest {
            image: Some(spec(image)),
            verbose: false,
        };
        Ok(self
            .images(async |mut cri| cri.image_status(request).await)?
            .image)
    }

    /// `ListImages`.
    pub fn list_images(&self) -> Result<Vec<Image>, Status> {
        let request = ListImagesRequest { filter: None };
        Ok(self
            .images(async |mut cri| cri.list_images(request).await)?
            .images)
    }

    /// `RemoveImage`.
    pub fn remove_image(&self, image: &str) -> Result<(), Status> {
        let request = RemoveImageRequest {
            image: Some(spec(image)),
        };
        self.images(async |mut cri| cri.remove_image(request).await)
            .map(|_| ())
    }

    /// `ImageFsInfo`.
    pub fn image_fs_info(&self) -> Result<ImageFsInfoResponse, Status> {
        self.images(async |mut cri| cri.image_fs_info(ImageFsInfoRequest {}).await)
    }
}

/// Asserts that the daemon refused a call with this code, and a message that says this.
///
/// # Panics
/// It did not, or in other words.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, message: &str) {
    match answer {
        Err(status) => {
            let says = status.message().contains(message);
            assert!(
                status.code() == code && says,
                "wanted {code:?} and {message:?}: {status:?}"
            );
        }
        Ok(answer) => panic!("wanted {code:?} and {message:?}: {answer:?}"),
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    }
}

//! `runtime.v1.RuntimeService`: each method gets its span and its file. What is not there yet says so.

use isopod_proto::cri::runtime_service_server::RuntimeService;
use isopod_proto::cri::*;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, async_trait};
use tracing::info_span;

use super::call::{cancelled_with_client, run};
use super::error::CriError;
use super::{
    Cri, attach, container_stats, container_status, create_container, exec, exec_sync,
    get_container_events, list_container_stats, list_containers, list_metric_descriptors,
    list_pod_sandbox, list_pod_sandbox_metrics, list_pod_sandbox_stats, pod_sandbox_stats,
    pod_sandbox_status, port_forward, remove_container, remove_pod_sandbox, reopen_container_log,
    run_pod_sandbox, runtime_config, start_container, status, stop_container, stop_pod_sandbox,
    stream_container_stats, stream_containers, stream_pod_sandbox_metrics,
    stream_pod_sandbox_stats, stream_pod_sandboxes, update_container_resources,
    update_pod_sandbox_resources, update_runtime_config, version,
};

type Answer<T> = Result<Response<T>, Status>;

/// The answer of a method that is not there yet.
fn missing<T>(what: &'static str) -> Answer<T> {
    Err(CriError::Unimplemented(what).into())
}

#[async_trait]
impl RuntimeService for Cri {
    async fn version(&self, request: Request<VersionRequest>) -> Answer<VersionResponse> {
        let request = request.into_inner();
        run(info_span!("Version"), async move {
            Ok(version::version(&request))
        })
        .await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Answer<RunPodSandboxResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        let (cancel, _guard) = cancelled_with_client();
        run(info_span!("RunPodSandbox"), async move {
            run_pod_sandbox::run_pod_sandbox(&cri, request, &cancel).await
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("StopPodSandbox", sandbox_id = %request.pod_sandbox_id),
            async move { stop_pod_sandbox::stop_pod_sandbox(&cri, request).await },
        )
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("RemovePodSandbox", sandbox_id = %request.pod_sandbox_id),
            async move { remove_pod_sandbox::remove_pod_sandbox(&cri, request).await },
        )
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("PodSandboxStatus", sandbox_id = %request.pod_sandbox_id),
            async move { pod_sandbox_status::pod_sandbox_status(&cri, request).await },
        )
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("ListPodSandbox"), async move {
            Ok(list_pod_sandbox::list_pod_sandbox(&cri, request))
        })
        .await
    }

    type StreamPodSandboxesStream = BoxStream<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxesResponse>> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("StreamPodSandboxes"), async move {
            let items = stream_pod_sandboxes::stream_pod_sandboxes(&cri, request);
            Ok(Box::pin(items) as BoxStream<_>)
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        let (cancel, _guard) = cancelled_with_client();
        run(
            info_span!("CreateContainer", sandbox_id = %request.pod_sandbox_id),
            async move { create_container::create_container(&cri, request, &cancel).await },
        )
        .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("StartContainer", container_id = %request.container_id),
            async move { start_container::start_container(&cri, request).await },
        )
        .await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("StopContainer", container_id = %request.container_id),
            async move { stop_container::stop_container(&cri, request).await },
        )
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("RemoveContainer", container_id = %request.container_id),
            async move { remove_container::remove_container(&cri, request).await },
        )
        .await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("ListContainers"), async move {
            Ok(list_containers::list_containers(&cri, request))
        })
        .await
    }

    type StreamContainersStream = BoxStream<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<BoxStream<StreamContainersResponse>> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("StreamContainers"), async move {
            let items = stream_containers::stream_containers(&cri, request);
            Ok(Box::pin(items) as BoxStream<_>)
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("ContainerStatus", container_id = %request.container_id),
            async move { container_status::container_status(&cri, &request).await },
        )
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("UpdateContainerResources", container_id = %request.container_id),
            async move { update_container_resources::update_container_resources(&cri, request).await },
        )
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("ReopenContainerLog", container_id = %request.container_id),
            async move { reopen_container_log::reopen_container_log(&cri, request).await },
        )
        .await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        let (cancel, _guard) = cancelled_with_client();
        run(
            info_span!("ExecSync", container_id = %request.container_id),
            async move { exec_sync::exec_sync(&cri, request, &cancel).await },
        )
        .await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("Exec", container_id = %request.container_id),
            async move { exec::exec(&cri, request) },
        )
        .await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("Attach", container_id = %request.container_id),
            async move { attach::attach(&cri, &request) },
        )
        .await
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("PortForward", sandbox_id = %request.pod_sandbox_id),
            async move { port_forward::port_forward(&cri, &request) },
        )
        .await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("ContainerStats", container_id = %request.container_id),
            async move { container_stats::container_stats(&cri, &request).await },
        )
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("ListContainerStats"), async move {
            Ok(list_container_stats::list_container_stats(&cri, request).await)
        })
        .await
    }

    type StreamContainerStatsStream = BoxStream<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<BoxStream<StreamContainerStatsResponse>> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("StreamContainerStats"), async move {
            let items = stream_container_stats::stream_container_stats(&cri, request).await;
            Ok(Box::pin(items) as BoxStream<_>)
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("PodSandboxStats", sandbox_id = %request.pod_sandbox_id),
            async move { pod_sandbox_stats::pod_sandbox_stats(&cri, &request).await },
        )
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("ListPodSandboxStats"), async move {
            Ok(list_pod_sandbox_stats::list_pod_sandbox_stats(&cri, request).await)
        })
        .await
    }

    type StreamPodSandboxStatsStream = BoxStream<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxStatsResponse>> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("StreamPodSandboxStats"), async move {
            let items = stream_pod_sandbox_stats::stream_pod_sandbox_stats(&cri, request).await;
            Ok(Box::pin(items) as BoxStream<_>)
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("UpdateRuntimeConfig"), async move {
            update_runtime_config::update_runtime_config(&cri, request).await
        })
        .await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(info_span!("Status"), async move {
            Ok(status::status(&cri, &request).await)
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        missing("single containers cannot be checkpointed")
    }

    async fn checkpoint_pod(
        &self,
        _: Request<CheckpointPodRequest>,
    ) -> Answer<CheckpointPodResponse> {
        missing("pods cannot be checkpointed yet")
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        missing("pods cannot be restored yet")
    }

    type GetContainerEventsStream = BoxStream<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<BoxStream<ContainerEventResponse>> {
        let cri = self.clone();
        run(info_span!("GetContainerEvents"), async move {
            let events = get_container_events::get_container_events(&cri)?;
            Ok(Box::pin(events) as BoxStream<_>)
        })
        .await
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        run(info_span!("ListMetricDescriptors"), async {
            Ok(list_metric_descriptors::list_metric_descriptors())
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let cri = self.clone();
        run(info_span!("ListPodSandboxMetrics"), async move {
            Ok(list_pod_sandbox_metrics::list_pod_sandbox_metrics(&cri).await)
        })
        .await
    }

    type StreamPodSandboxMetricsStream = BoxStream<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<BoxStream<StreamPodSandboxMetricsResponse>> {
        let cri = self.clone();
        run(info_span!("StreamPodSandboxMetrics"), async move {
            let items = stream_pod_sandbox_metrics::stream_pod_sandbox_metrics(&cri).await;
            Ok(Box::pin(items) as BoxStream<_>)
        })
        .await
    }

    async fn runtime_config(
        &self,
        request: Request<RuntimeConfigRequest>,
    ) -> Answer<RuntimeConfigResponse> {
        let request = request.into_inner();
        run(info_span!("RuntimeConfig"), async move {
            Ok(runtime_config::runtime_config(&request))
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let cri = self.clone();
        run(
            info_span!("UpdatePodSandboxResources", sandbox_id = %request.pod_sandbox_id),
            async move {
                update_pod_sandbox_resources::update_pod_sandbox_resources(&cri, request).await
            },
        )
        .await
    }
}

//! `StreamPodSandboxMetrics`: what `ListPodSandboxMetrics` answers, in messages that cannot grow too
//! large.

use futures_util::{Stream, stream};
use isopod_proto::cri::StreamPodSandboxMetricsResponse;
use tonic::Status;

use super::Cri;
use super::list_pod_sandbox_metrics::of_pods;

/// A pod to a message: one of many containers has thousands of metrics.
pub(super) async fn stream_pod_sandbox_metrics(
    cri: &Cri,
) -> impl Stream<Item = Result<StreamPodSandboxMetricsResponse, Status>> + Send + use<> {
    stream::iter(of_pods(cri).await.into_iter().map(|pod| {
        Ok(StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics: vec![pod],
        })
    }))
}

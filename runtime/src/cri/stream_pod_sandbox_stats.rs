//! `StreamPodSandboxStats`: what `ListPodSandboxStats` answers, in messages that cannot grow too
//! large.

use futures_util::Stream;
use isopod_proto::cri::{StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse};
use tonic::Status;

use super::Cri;
use super::chunks::chunks;
use super::list_pod_sandbox_stats::of_pods;

pub(super) async fn stream_pod_sandbox_stats(
    cri: &Cri,
    request: StreamPodSandboxStatsRequest,
) -> impl Stream<Item = Result<StreamPodSandboxStatsResponse, Status>> + Send + use<> {
    let items = of_pods(cri, &request.filter.unwrap_or_default()).await;
    chunks(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse {
        pod_sandbox_stats,
    })
}

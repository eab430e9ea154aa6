//! `StreamContainerStats`: what `ListContainerStats` answers, in messages that cannot grow too large.

use futures_util::Stream;
use isopod_proto::cri::{StreamContainerStatsRequest, StreamContainerStatsResponse};
use tonic::Status;

use super::Cri;
use super::chunks::chunks;
use super::list_container_stats::of_containers;

pub(super) async fn stream_container_stats(
    cri: &Cri,
    request: StreamContainerStatsRequest,
) -> impl Stream<Item = Result<StreamContainerStatsResponse, Status>> + Send + use<> {
    let items = of_containers(cri, &request.filter.unwrap_or_default()).await;
    chunks(items, |container_stats| StreamContainerStatsResponse {
        container_stats,
    })
}

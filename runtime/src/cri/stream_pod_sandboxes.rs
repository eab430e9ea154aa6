//! `StreamPodSandboxes`: what `ListPodSandbox` answers, in messages that cannot grow too large.

use futures_util::Stream;
use isopod_proto::cri::{
    ListPodSandboxRequest, StreamPodSandboxesRequest, StreamPodSandboxesResponse,
};
use tonic::Status;

use super::Cri;
use super::chunks::chunks;
use super::list_pod_sandbox::list_pod_sandbox;

pub(super) fn stream_pod_sandboxes(
    cri: &Cri,
    request: StreamPodSandboxesRequest,
) -> impl Stream<Item = Result<StreamPodSandboxesResponse, Status>> + Send + use<> {
    let filter = request.filter;
    let items = list_pod_sandbox(cri, ListPodSandboxRequest { filter }).items;
    chunks(items, |pod_sandboxes| StreamPodSandboxesResponse {
        pod_sandboxes,
    })
}

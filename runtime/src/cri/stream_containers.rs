//! `StreamContainers`: what `ListContainers` answers, in messages that cannot grow too large.

use futures_util::Stream;
use isopod_proto::cri::{ListContainersRequest, StreamContainersRequest, StreamContainersResponse};
use tonic::Status;

use super::Cri;
use super::chunks::chunks;
use super::list_containers::list_containers;

pub(super) fn stream_containers(
    cri: &Cri,
    request: StreamContainersRequest,
) -> impl Stream<Item = Result<StreamContainersResponse, Status>> + Send + use<> {
    let filter = request.filter;
    let items = list_containers(cri, ListContainersRequest { filter }).containers;
    chunks(items, |containers| StreamContainersResponse { containers })
}

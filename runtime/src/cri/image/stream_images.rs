//! `StreamImages`: what `ListImages` answers, in messages that cannot grow too large.

use futures_util::{Stream, stream};
use isopod_proto::cri::{StreamImagesRequest, StreamImagesResponse};
use tonic::Status;

use super::ImageApi;

/// Images in one message: a few kilobytes each, so far below gRPC's 4 MiB.
const IMAGES_PER_MESSAGE: usize = 100;

impl ImageApi {
    pub(super) fn stream(
        &self,
        request: &StreamImagesRequest,
    ) -> impl Stream<Item = Result<StreamImagesResponse, Status>> + Send + use<> {
        let mut images = self.filtered(request.filter.as_ref()).into_iter();
        stream::iter(std::iter::from_fn(move || {
            let images: Vec<_> = images.by_ref().take(IMAGES_PER_MESSAGE).collect();
            (!images.is_empty()).then_some(Ok(StreamImagesResponse { images }))
        }))
    }
}

//! `StreamImages`: what `ListImages` answers, in messages that cannot grow too large.

use futures_util::Stream;
use isopod_proto::cri::{StreamImagesRequest, StreamImagesResponse};
use tonic::Status;

use super::ImageApi;
use crate::cri::chunks::chunks;

impl ImageApi {
    pub(super) fn stream(
        &self,
        request: &StreamImagesRequest,
    ) -> impl Stream<Item = Result<StreamImagesResponse, Status>> + Send + use<> {
        let images = self.filtered(request.filter.as_ref());
        chunks(images, |images| StreamImagesResponse { images })
    }
}

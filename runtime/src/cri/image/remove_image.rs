//! `RemoveImage`: a tag, or an image with all of its names. Idempotent, as the CRI wants it.

use isopod_proto::cri::{RemoveImageRequest, RemoveImageResponse};
use tonic::Status;

use super::{ImageApi, required};

impl ImageApi {
    pub(super) async fn remove(
        &self,
        request: RemoveImageRequest,
    ) -> Result<RemoveImageResponse, Status> {
        self.store.remove(&required(request.image)?).await?;
        Ok(RemoveImageResponse {})
    }
}

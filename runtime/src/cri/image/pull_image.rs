//! `PullImage`: asks the registry, even if there is an image of that name. Answers with the image's
//! id. Ends when the caller goes away.

use isopod_proto::cri::{PullImageRequest, PullImageResponse};
use tonic::Status;

use super::credentials::credentials;
use super::{ImageApi, required};

impl ImageApi {
    pub(super) async fn pull(
        &self,
        request: PullImageRequest,
    ) -> Result<PullImageResponse, Status> {
        let auth = credentials(request.auth.unwrap_or_default())?;
        let image = self.store.pull(&required(request.image)?, auth).await?;
        Ok(PullImageResponse {
            image_ref: image.id,
        })
    }
}

//! `PullImage`: asks the registry, even if there is an image of that name. Answers with the image's
//! id. Ends when the caller goes away.

use isopod_proto::cri::{PullImageRequest, PullImageResponse};
use tonic::Status;

use super::credentials::credentials;
use super::{ImageApi, required};
use crate::image::{Progress, PullRequest, chain};

impl ImageApi {
    #[tracing::instrument(name = "PullImage", skip_all)]
    pub(super) async fn pull(
        &self,
        request: PullImageRequest,
    ) -> Result<PullImageResponse, Status> {
        let request = PullRequest {
            auth: credentials(request.auth.unwrap_or_default())?,
            reference: required(request.image)?,
            registry_socket: None,
        };
        let image = self.store.pull(request, &Progress::default()).await;
        let image =
            image.inspect_err(|error| tracing::error!(error = chain(error), "not pulled"))?;
        Ok(PullImageResponse {
            image_ref: image.id,
        })
    }
}

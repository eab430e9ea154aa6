//! `isopod.images.v1.Images`: what people want of images and the CRI does not have, on its socket.
//!
//! Every method in a file named after it; all of them work on the one [`ImageStore`].

mod export;
mod pull;

use std::pin::Pin;

use futures_util::Stream;
use isopod_proto::images::images_server::Images;
use isopod_proto::images::{ExportPart, ExportRequest, PullEvent, PullRequest};
use tonic::{Request, Response, Status};

use crate::image::ImageStore;

/// Serves `isopod.images.v1.Images` from the image store.
#[derive(Debug)]
pub(crate) struct ImagesApi {
    store: ImageStore,
}

impl ImagesApi {
    /// Serves what `store` holds.
    pub(crate) fn new(store: ImageStore) -> Self {
        Self { store }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Images for ImagesApi {
    type PullStream = Answers<PullEvent>;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let events = pull::pull(self.store.clone(), request.into_inner());
        Ok(Response::new(Box::pin(events)))
    }

    type ExportStream = Answers<ExportPart>;

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let parts = export::export(&self.store, &request.into_inner())?;
        Ok(Response::new(Box::pin(parts)))
    }
}

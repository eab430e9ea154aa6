//! The CRI's image service: every method in a file named after it.
//!
//! All of them look at, or change, the one [`ImageStore`]; what they add is the CRI's view of an
//! image (`describe.rs`) and of credentials (`credentials.rs`).

mod credentials;
mod describe;
mod image_fs_info;
mod image_status;
mod list_images;
mod pull_image;
mod remove_image;
mod stream_images;

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use isopod_proto::cri::image_service_server::ImageService;
use isopod_proto::cri::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse,
    ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest,
    RemoveImageResponse, StreamImagesRequest, StreamImagesResponse,
};
use tonic::{Request, Response, Status};

use crate::image::ImageStore;

/// Serves `runtime.v1.ImageService` from the image store.
#[derive(Debug)]
pub(crate) struct ImageApi {
    store: Arc<ImageStore>,
}

impl ImageApi {
    /// Serves what `store` holds.
    pub(crate) fn new(store: Arc<ImageStore>) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    async fn list_images(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(self.list(&request.into_inner())))
    }

    type StreamImagesStream =
        Pin<Box<dyn Stream<Item = Result<StreamImagesResponse, Status>> + Send>>;

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Ok(Response::new(Box::pin(self.stream(&request.into_inner()))))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        self.status(request.into_inner()).map(Response::new)
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<PullImageResponse>, Status> {
        self.pull(request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        self.remove(request.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(
        &self,
        _request: Request<ImageFsInfoRequest>,
    ) -> Result<Response<ImageFsInfoResponse>, Status> {
        self.fs_info().await.map(Response::new)
    }
}

/// The reference in a request that cannot do without one.
fn required(spec: Option<ImageSpec>) -> Result<String, Status> {
    spec.map(|spec| spec.image)
        .filter(|image| !image.is_empty())
        .ok_or_else(|| Status::invalid_argument("image: no reference was given"))
}

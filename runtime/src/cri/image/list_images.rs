//! `ListImages`: the images in the store, or the one that the filter names.

use isopod_proto::cri::{Image, ImageFilter, ListImagesRequest, ListImagesResponse};

use super::ImageApi;
use super::describe::describe;

impl ImageApi {
    pub(super) fn list(&self, request: &ListImagesRequest) -> ListImagesResponse {
        ListImagesResponse {
            images: self.filtered(request.filter.as_ref()),
        }
    }

    /// A filter without a name is no filter.
    pub(super) fn filtered(&self, filter: Option<&ImageFilter>) -> Vec<Image> {
        let name = filter
            .and_then(|filter| filter.image.as_ref())
            .map(|spec| spec.image.as_str());
        let images = match name {
            None | Some("") => self.store.list(),
            Some(name) => self.store.find(name).into_iter().collect(),
        };
        images.into_iter().map(describe).collect()
    }
}

//! `ImageStatus`: one image, or no image and no error if it is not there.

use std::collections::HashMap;

use isopod_proto::cri::{ImageStatusRequest, ImageStatusResponse};
use serde_json::json;
use tonic::Status;

use super::describe::describe;
use super::{ImageApi, required};
use crate::image;

impl ImageApi {
    pub(super) fn status(
        &self,
        request: ImageStatusRequest,
    ) -> Result<ImageStatusResponse, Status> {
        let Some(image) = self.store.find(&required(request.image)?) else {
            return Ok(ImageStatusResponse::default());
        };
        let info = if request.verbose {
            verbose(&image)
        } else {
            HashMap::new()
        };
        Ok(ImageStatusResponse {
            image: Some(describe(image)),
            info,
        })
    }
}

/// As containerd has it: one key, `info`, whose value is JSON. `crictl inspecti` prints it.
fn verbose(image: &image::Image) -> HashMap<String, String> {
    let info = json!({ "imageSpec": &*image.config, "diskBytes": image.size });
    HashMap::from([("info".to_owned(), info.to_string())])
}

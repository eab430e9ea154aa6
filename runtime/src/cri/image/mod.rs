//! The CRI's image service.

use std::sync::Arc;

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

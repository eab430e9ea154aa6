//! Listing the images.

use super::ImageStore;
use crate::image::Image;

impl ImageStore {
    /// Every image, in the order of their ids.
    pub(crate) fn list(&self) -> Vec<Image> {
        let state = self.shared.state();
        state
            .images
            .keys()
            .filter_map(|id| state.describe(id))
            .collect()
    }
}

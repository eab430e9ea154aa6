//! Opening an image's disk.

use std::fs::File;
use std::path::Path;

use super::ImageStore;
use super::record::METADATA;
use crate::image::layer::DATA;
use crate::image::limits::BLOCK_BYTES;
use crate::image::{DiskExtent, ImageDisk, ImageError};

impl ImageStore {
    /// Opens the image's disk: its metadata, then every data blob that it points into. Blocking, for
    /// the time of a few `open` calls.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; a file cannot be opened.
    pub(crate) fn disk(&self, image_id: &str) -> Result<ImageDisk, ImageError> {
        // Whoever removes an image takes it from the state first, so its files are there while the
        // state is locked; and once they are open they stay.
        let state = self.shared.state();
        let found = state
            .lookup_id(image_id)
            .and_then(|id| Some((id, state.images.get(&id)?)));
        let Some((id, image)) = found else {
            return Err(ImageError::NotFound {
                reference: image_id.to_owned(),
            });
        };
        let mut extents = vec![extent(
            &self.shared.image(&id).join(METADATA),
            image.record.metadata_blocks,
        )?];
        for &layer in &image.record.disk {
            let layer = image.record.layers[layer];
            extents.push(extent(
                &self.shared.layer(&layer.diff_id).join(DATA),
                layer.blocks,
            )?);
        }
        Ok(ImageDisk { extents })
    }
}

fn extent(path: &Path, blocks: u32) -> Result<DiskExtent, ImageError> {
    let file = File::open(path).map_err(ImageError::io("opening", path))?;
    Ok(DiskExtent {
        file,
        offset: 0,
        length: u64::from(blocks) * BLOCK_BYTES,
    })
}

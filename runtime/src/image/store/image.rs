//! From layers that are in the store to an image that is.

use std::fs::{self, File};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use oci_spec::image::ImageConfiguration;

use super::open::allocated;
use super::record::{
    CONFIG, ImageRecord, LayerRecord, METADATA, NAMES, RECORD, sync_directory, sync_parent,
    write_durably, write_names,
};
use super::{Shared, StoredImage};
use crate::image::digest::Digest;
use crate::image::erofs::{self, ErofsError};
use crate::image::error::chain;
use crate::image::layer::{Damage, INDEX, IndexReader};
use crate::image::reference::Reference;
use crate::image::tree::{Tree, TreeError};
use crate::image::{Image, ImageError};

/// An image to be made, its layers pinned and published.
pub(super) struct NewImage {
    /// The reference that was pulled.
    pub(super) reference: Reference,
    /// Digest of what it names.
    pub(super) digest: Digest,
    /// The image's id.
    pub(super) id: Digest,
    /// Its configuration.
    pub(super) config: Bytes,
    /// Its layers, lowest first.
    pub(super) diff_ids: Vec<Digest>,
}

impl Shared {
    /// Merges the layers, unless that was done before, publishes the image and names it. Blocking.
    pub(super) fn add_image(&self, new: &NewImage) -> Result<Image, ImageError> {
        let known = self.state().images.get(&new.id).cloned();
        let staged = match known {
            Some(_) => None,
            None => Some(self.stage_image(new)?),
        };
        let _order = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        // Meanwhile another pull may have made it, or a removal taken it away.
        let known = self.state().images.contains_key(&new.id);
        match (known, staged) {
            (false, Some((directory, image))) => self.publish_image(new, &directory, image)?,
            (false, None) => {
                let (directory, image) = self.stage_image(new)?;
                self.publish_image(new, &directory, image)?;
            }
            (true, _) => {}
        }
        self.name_image(new)
    }

    /// Makes the image's directory, complete and durable, in `tmp/`.
    fn stage_image(&self, new: &NewImage) -> Result<(tempfile::TempDir, StoredImage), ImageError> {
        let temporary = self.temporary();
        let staging = tempfile::TempDir::new_in(&temporary)
            .map_err(ImageError::io("creating a directory in", &temporary))?;
        let directory = staging.path().join("image");
        fs::create_dir(&directory).map_err(ImageError::io("writing", &directory))?;

        let config: ImageConfiguration =
            serde_json::from_slice(&new.config).map_err(|error| new.refused(error.to_string()))?;
        let (tree, layers) = self.merge(new)?;
        let path = directory.join(METADATA);
        let composition = File::create_new(&path)
            .map_err(ErofsError::Io)
            .and_then(|file| {
                let composition = erofs::write(&tree, &layers, file.try_clone()?)?;
                file.sync_data()?;
                Ok(composition)
            })
            .map_err(|error| match error {
                ErofsError::TooLarge => new.too_large(error.to_string()),
                ErofsError::Io(error) => ImageError::io("writing", &path)(error),
            })?;
        let layers = layers
            .iter()
            .map(|&erofs::Layer { diff_id, blocks }| LayerRecord { diff_id, blocks });
        let record = ImageRecord::new(
            composition.metadata_blocks,
            layers.collect(),
            composition.layers,
        );
        let text = serde_json::to_vec_pretty(&record).expect("a record of numbers and digests");
        write_durably(&directory.join(RECORD), &text)
            .and_then(|()| write_durably(&directory.join(CONFIG), &new.config))
            .map_err(ImageError::io("writing", &directory))?;
        sync_directory(&directory)?;
        let image = StoredImage {
            record: Arc::new(record),
            config: Arc::new(config),
            own_bytes: allocated(&directory, &[RECORD, METADATA, CONFIG])?,
        };
        Ok((staging, image))
    }

    fn publish_image(
        &self,
        new: &NewImage,
        staging: &tempfile::TempDir,
        image: StoredImage,
    ) -> Result<(), ImageError> {
        let path = self.image(&new.id);
        fs::rename(staging.path().join("image"), &path)
            .map_err(ImageError::io("publishing", &path))?;
        sync_parent(&path)?;
        self.state().images.insert(new.id, image);
        Ok(())
    }

    /// Gives the image the reference's tag, whoever had it before, and its digest.
    fn name_image(&self, new: &NewImage) -> Result<Image, ImageError> {
        let mut names = self.state().names.clone();
        names.insert(new.reference.to_string(), new.id);
        names.insert(new.reference.with_digest(new.digest).to_string(), new.id);
        write_names(&self.root.join(NAMES), &names, &self.temporary())?;
        let mut state = self.state();
        state.names = names;
        state.describe(&new.id).ok_or_else(|| ImageError::NotFound {
            reference: new.reference.to_string(),
        })
    }

    /// Puts the layers on top of one another.
    fn merge(&self, new: &NewImage) -> Result<(Tree, Vec<erofs::Layer>), ImageError> {
        let mut tree = Tree::new();
        let mut layers = Vec::with_capacity(new.diff_ids.len());
        for (number, diff_id) in (0_u8..).zip(&new.diff_ids) {
            let path = self.layer(diff_id).join(INDEX);
            let damaged = |damage: Damage| ImageError::Damaged {
                path: path.clone(),
                reason: chain(&damage),
            };
            let file = File::open(&path).map_err(ImageError::io("opening", &path))?;
            let mut index = IndexReader::new(file).map_err(damaged)?;
            while let Some(record) = index.next_record().map_err(damaged)? {
                tree.apply(number, record).map_err(|error| match error {
                    TreeError::Entry { .. } => new.refused_layer(diff_id, error.to_string()),
                    TreeError::TooMany | TreeError::TooLarge => new.too_large(error.to_string()),
                })?;
            }
            let blocks = index.blocks().expect("known after the last record");
            layers.push(erofs::Layer {
                diff_id: *diff_id,
                blocks,
            });
        }
        Ok((tree, layers))
    }
}

impl NewImage {
    fn refused(&self, reason: String) -> ImageError {
        let image = self.reference.to_string();
        ImageError::Refused {
            image,
            object: "config".to_owned(),
            reason,
        }
    }

    fn refused_layer(&self, diff_id: &Digest, reason: String) -> ImageError {
        let image = self.reference.to_string();
        ImageError::Refused {
            image,
            object: format!("layer with diff id {diff_id}"),
            reason,
        }
    }

    fn too_large(&self, reason: String) -> ImageError {
        let image = self.reference.to_string();
        ImageError::TooLarge {
            image,
            object: "its filesystem".to_owned(),
            reason,
        }
    }
}

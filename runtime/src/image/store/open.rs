//! Opening the store.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oci_spec::image::ImageConfiguration;
use tokio::sync::Semaphore;

use super::record::{CONFIG, ImageRecord, METADATA, NAMES, RECORD, read_names};
use super::{ImageStore, Shared, State, StoredImage};
use crate::config::RegistryConfig;
use crate::image::ImageError;
use crate::image::digest::Digest;
use crate::image::layer::{DATA, FILES, IngestLimits};
use crate::image::limits::BLOCK_BYTES;
use crate::image::reference::Reference;
use crate::image::registry::{Patience, Registry};

/// Layers downloaded and taken in at a time, over all pulls.
const MAX_DOWNLOADS: usize = 4;

/// Images merged at a time: each may take [`MAX_TREE_BYTES`](crate::image::limits::MAX_TREE_BYTES).
const MAX_MERGES: usize = 1;

impl ImageStore {
    /// Opens the store at `root` (created if missing) and sweeps what a crash left behind. An image
    /// whose files are damaged is dropped, as if it had never been pulled. Blocking.
    ///
    /// # Errors
    /// The directories cannot be created, read or swept, or the record of names is damaged.
    pub(crate) fn open(root: &Path, registry: &RegistryConfig) -> Result<Self, ImageError> {
        Self::open_with(root, registry, Patience::default())
    }

    /// [`ImageStore::open`] for those who cannot wait.
    pub(super) fn open_with(
        root: &Path,
        registry: &RegistryConfig,
        patience: Patience,
    ) -> Result<Self, ImageError> {
        for directory in ["layers", "images"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(ImageError::io("creating", &path))?;
        }
        let shared = Shared {
            root: root.to_owned(),
            registry: Registry::new(registry, patience),
            limits: IngestLimits::from_mib(registry.max_layer_mib),
            keep: Duration::from_millis(registry.keep_layers_ms),
            state: Mutex::new(State::default()),
            changes: Mutex::new(()),
            layer_locks: Mutex::new(HashMap::new()),
            downloads: Semaphore::new(MAX_DOWNLOADS),
            merges: Semaphore::new(MAX_MERGES),
        };
        let temporary = shared.temporary();
        if temporary
            .try_exists()
            .map_err(ImageError::io("looking for", &temporary))?
        {
            fs::remove_dir_all(&temporary).map_err(ImageError::io("sweeping", &temporary))?;
        }
        fs::create_dir(&temporary).map_err(ImageError::io("creating", &temporary))?;
        let pinned = registry.pinned.iter().map(|text| Reference::parse(text));
        let pinned: Result<Vec<_>, _> = pinned.collect();
        shared.load(&pinned?)?;
        shared.collect_garbage();
        let shared = Arc::new(shared);
        if !shared.state().spare.is_empty() {
            shared.collect_later();
        }
        Ok(Self { shared })
    }
}

impl Shared {
    /// Finds out what is on disk.
    fn load(&self, pinned: &[Reference]) -> Result<(), ImageError> {
        let mut state = State {
            pinned: pinned.iter().map(Reference::to_string).collect(),
            ..State::default()
        };
        for diff_id in digests_in(&self.root.join("layers"))? {
            match allocated(&self.layer(&diff_id), &FILES) {
                Ok(bytes) => {
                    state.layers.insert(diff_id, bytes);
                    let until = self.kept_until(&diff_id);
                    state.spare.extend(until.map(|until| (diff_id, until)));
                }
                Err(error) => {
                    tracing::warn!(%diff_id, error = %crate::image::error::chain(&error), "layer dropped");
                    self.discard(&self.layer(&diff_id));
                }
            }
        }
        for id in digests_in(&self.root.join("images"))? {
            match self.load_image(&id, &state) {
                Ok(image) => {
                    state.images.insert(id, image);
                }
                Err(error) => {
                    tracing::warn!(%id, error = %crate::image::error::chain(&error), "image dropped");
                    self.discard(&self.image(&id));
                }
            }
        }
        state.names = read_names(&self.root.join(NAMES))?;
        let State { images, names, .. } = &mut state;
        names.retain(|_, id| images.contains_key(id));
        *self.state() = state;
        Ok(())
    }

    /// Until when a layer stays that turns out to be no image's; `None` if it has been here for too
    /// long, or the clock cannot tell.
    fn kept_until(&self, diff_id: &Digest) -> Option<Instant> {
        let made = fs::metadata(self.layer(diff_id)).ok()?.modified().ok()?;
        let left = self.keep.checked_sub(made.elapsed().ok()?)?;
        Some(Instant::now() + left)
    }

    fn load_image(&self, id: &Digest, state: &State) -> Result<StoredImage, ImageError> {
        let directory = self.image(id);
        let damaged = |name: &str, reason: String| ImageError::Damaged {
            path: directory.join(name),
            reason,
        };
        let record = ImageRecord::read(&directory.join(RECORD))?;
        let metadata = directory.join(METADATA);
        let length = fs::metadata(&metadata)
            .map_err(ImageError::io("looking at", &metadata))?
            .len();
        if length != u64::from(record.metadata_blocks) * BLOCK_BYTES {
            return Err(damaged(METADATA, format!("{length} bytes long")));
        }
        for layer in &record.layers {
            let path = self.layer(&layer.diff_id).join(DATA);
            let length = fs::metadata(&path)
                .map_err(ImageError::io("looking at", &path))?
                .len();
            if !state.layers.contains_key(&layer.diff_id)
                || length != u64::from(layer.blocks) * BLOCK_BYTES
            {
                return Err(ImageError::Damaged {
                    path,
                    reason: format!("{length} bytes long"),
                });
            }
        }
        let path = directory.join(CONFIG);
        let config = fs::read(&path).map_err(ImageError::io("reading", &path))?;
        if Digest::of(&config) != *id {
            return Err(damaged(CONFIG, "its digest is wrong".to_owned()));
        }
        let config: ImageConfiguration =
            serde_json::from_slice(&config).map_err(|error| damaged(CONFIG, error.to_string()))?;
        Ok(StoredImage {
            record: Arc::new(record),
            config: Arc::new(config),
            own_bytes: allocated(&directory, &[RECORD, METADATA, CONFIG])?,
        })
    }
}

/// Bytes that these files take on disk.
pub(super) fn allocated(directory: &Path, names: &[&str]) -> Result<u64, ImageError> {
    let mut bytes = 0;
    for name in names {
        let path = directory.join(name);
        let metadata = fs::metadata(&path).map_err(ImageError::io("looking at", &path))?;
        // Always in units of 512 bytes, whatever the filesystem's own are.
        bytes += metadata.blocks() * 512;
    }
    Ok(bytes)
}

/// The directories here that are named by a digest. Others are not ours to touch.
fn digests_in(path: &Path) -> Result<Vec<Digest>, ImageError> {
    let mut digests = Vec::new();
    for entry in fs::read_dir(path).map_err(ImageError::io("listing", path))? {
        let entry = entry.map_err(ImageError::io("listing", path))?;
        if let Some(digest) = entry
            .file_name()
            .to_str()
            .and_then(|name| Digest::from_hex(name).ok())
        {
            digests.push(digest);
        }
    }
    Ok(digests)
}

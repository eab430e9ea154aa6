//! The store: layers, images and their names, on disk.
//!
//! ```text
//! layers/<diff id>/data, index, recipe            complete, or not there
//! images/<id>/config.json, record.json, metadata  complete, or not there
//! names.json                                      every name and the image that it names
//! tmp/                                            whatever is not finished; swept when the store opens
//! ```
//!
//! What is published is never changed, only removed. A directory is filled in `tmp/`, made durable
//! and renamed into place; `names.json` is replaced by a rename as well. An image exists while it
//! has a name, and a layer while an image has it or a pull has *pinned* it, so a crash between two
//! steps leaves nothing but garbage, which the next opening collects.
//!
//! A layer that a pull finished before it failed for want of a registry, was given up or crashed is
//! *spare*: it stays for `keep_layers_ms`, so that the next try goes on where this one ended. What a
//! pull brought whose image is refused goes at once.
//!
//! | lock                  | guards                                    | held across            |
//! |-----------------------|-------------------------------------------|------------------------|
//! | `state`               | what is known to be on disk, names, pins  | `open` and `rename`    |
//! | `changes`             | that images and their names come together | writing `names.json`   |
//! | one per layer         | that a layer is downloaded once           | a download             |
//! | `downloads`, `merges` | how much happens at a time                | a download, a merge    |
//!
//! They are taken from the bottom of this table to its top, never the other way.

mod disk;
mod export;
mod find;
mod garbage;
mod image;
mod list;
mod open;
mod pull;
mod record;
mod remove;
mod usage;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use oci_spec::image::ImageConfiguration;
use tokio::sync::Semaphore;

use self::record::ImageRecord;
use super::Image;
use super::digest::Digest;
use super::layer::IngestLimits;
use super::registry::Registry;

/// Where the images are kept. A handle: cheap to clone, every clone the same store.
#[derive(Debug, Clone)]
pub(crate) struct ImageStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    registry: Registry,
    limits: IngestLimits,
    /// How long layers are kept that no image has.
    keep: Duration,
    state: Mutex<State>,
    changes: Mutex<()>,
    layer_locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    downloads: Semaphore,
    merges: Semaphore,
}

/// What is known to be on disk.
#[derive(Debug, Default)]
struct State {
    images: BTreeMap<Digest, StoredImage>,
    /// Normalised references, with a tag or with a digest.
    names: BTreeMap<String, Digest>,
    /// References whose images the configuration wants to stay, normalised.
    pinned: HashSet<String>,
    /// Every published layer, and the bytes it takes on disk.
    layers: HashMap<Digest, u64>,
    /// Layers that pulls need, and how many.
    pins: HashMap<Digest, usize>,
    /// Layers that failed pulls left, and how long they are kept for the next try.
    spare: HashMap<Digest, Instant>,
}

#[derive(Debug, Clone)]
struct StoredImage {
    record: Arc<ImageRecord>,
    config: Arc<ImageConfiguration>,
    /// Bytes that the image takes on disk without its layers.
    own_bytes: u64,
}

impl ImageStore {
    /// Where the store is.
    pub(crate) fn root(&self) -> &Path {
        &self.shared.root
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn image(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(id.hex())
    }
}

impl State {
    /// The image as callers see it.
    fn describe(&self, id: &Digest) -> Option<Image> {
        let stored = self.images.get(id)?;
        let names = self
            .names
            .iter()
            .filter(|(_, named)| *named == id)
            .map(|(name, _)| name);
        let pinned = names.clone().any(|name| self.pinned.contains(name));
        let (repo_digests, repo_tags) = names.cloned().partition(|name| name.contains('@'));
        // A layer that an image has twice is there once.
        let mut diff_ids: Vec<_> = stored
            .record
            .layers
            .iter()
            .map(|layer| layer.diff_id)
            .collect();
        diff_ids.sort_unstable();
        diff_ids.dedup();
        let layers = diff_ids
            .iter()
            .filter_map(|diff_id| self.layers.get(diff_id));
        Some(Image {
            id: id.to_string(),
            repo_tags,
            repo_digests,
            size: stored.own_bytes + layers.sum::<u64>(),
            pinned,
            config: Arc::clone(&stored.config),
        })
    }
}

#[cfg(test)]
mod tests;

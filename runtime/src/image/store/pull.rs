//! Pulling.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::garbage::{Leftovers, Pins};
use super::image::NewImage;
use super::open::allocated;
use super::record::{sync_directory, sync_parent};
use super::{ImageStore, Shared};
use crate::image::digest::Digest;
use crate::image::error::chain;
use crate::image::layer::{FILES, Ingested, LayerError, ingest};
use crate::image::manifest::LayerDescriptor;
use crate::image::progress::{LayerProgress, LayerState, Progress};
use crate::image::reference::Reference;
use crate::image::registry::{BlobEvent, Resolved, Session};
use crate::image::{Image, ImageError, PullRequest};

/// Parts of a blob between the connection and the thread that takes it in: enough that neither
/// waits for the other's every move.
const PARTS_IN_FLIGHT: usize = 32;

/// Of a layer that is refused, how much more is read to see whether its digest is right.
const MAX_REST: u64 = 256 << 20;

impl ImageStore {
    /// Pulls an image and gives it its names. The registry is always asked which image the
    /// reference names; what is there already is not downloaded again. Dropping the future ends the
    /// pull.
    ///
    /// # Errors
    /// The store then has the same images as before. Layers that were finished stay for a while if
    /// trying again may help.
    #[tracing::instrument(skip_all, fields(image = request.reference))]
    pub(crate) async fn pull(
        &self,
        request: PullRequest,
        progress: &Progress,
    ) -> Result<Image, ImageError> {
        let reference = Reference::parse(&request.reference)?;
        let shared = &self.shared;
        let session = shared.registry.session(&reference, request);
        let resolved = session.resolve().await?;

        let diff_ids = resolved.layers.iter().map(|layer| layer.diff_id).collect();
        let pins = Arc::new(Pins::new(shared, diff_ids));
        let work = TaskTracker::new();
        let pulled = shared
            .fetch_and_add(&session, &reference, resolved, (&pins, &work), progress)
            .await;
        // Whoever hears of a failure finds nothing half done.
        work.close();
        work.wait().await;
        let pulled = pulled.map_err(|error| error.in_pull_of(&reference));
        let leftovers = match &pulled {
            Ok(_) => Leftovers::Remove,
            Err(error) => Leftovers::of(error),
        };
        blocking(move || Arc::into_inner(pins).map(|pins| pins.release(leftovers))).await;
        let image = pulled?;
        tracing::info!(id = image.id, size = image.size, "image pulled");
        Ok(image)
    }
}

impl Shared {
    /// What a pull does once it is known of what. `work` has its threads.
    async fn fetch_and_add(
        self: &Arc<Self>,
        session: &Session,
        reference: &Reference,
        resolved: Resolved,
        (pins, work): (&Arc<Pins>, &TaskTracker),
        progress: &Progress,
    ) -> Result<Image, ImageError> {
        let diff_ids = resolved.layers.iter().map(|layer| layer.diff_id);
        let new = NewImage {
            reference: reference.clone(),
            digest: resolved.digest,
            id: resolved.id,
            config: resolved.config,
            diff_ids: diff_ids.collect(),
        };
        // A layer that an image has twice is one layer.
        let mut layers = resolved.layers;
        let mut seen = HashSet::new();
        layers.retain(|layer| seen.insert(layer.diff_id));
        let waiting = layers
            .iter()
            .map(|layer| LayerProgress::new(layer.digest, layer.size));
        let progress = progress.begin(waiting.collect());
        let fetches = layers
            .iter()
            .zip(progress)
            .map(|(layer, progress)| self.ensure_layer(session, reference, layer, work, progress));
        try_join_all(fetches).await?;

        let turn = self.merges.acquire().await;
        let _turn = turn.expect("the semaphore is never closed");
        let (worker, pins) = (Arc::clone(self), Arc::clone(pins));
        let adding = work.spawn_blocking(move || {
            let image = worker.add_image(&new);
            // Here, as a pull that is given up now must not lose them halfway.
            drop(pins);
            image
        });
        joined(adding).await
    }

    /// Downloads a layer unless it is there. One download at a time, whoever wants it: the others
    /// wait, and if it fails or is given up the next one tries for itself.
    async fn ensure_layer(
        self: &Arc<Self>,
        session: &Session,
        reference: &Reference,
        layer: &LayerDescriptor,
        work: &TaskTracker,
        progress: &LayerProgress,
    ) -> Result<(), ImageError> {
        let lock = self.layer_lock(layer.diff_id);
        let _download = lock.lock().await;
        if self.state().layers.contains_key(&layer.diff_id) {
            progress.is_now(LayerState::Present);
            return Ok(());
        }
        let _turn = self
            .downloads
            .acquire()
            .await
            .expect("the semaphore is never closed");
        progress.is_now(LayerState::Downloading);
        self.fetch_layer(session, reference, layer, work, progress)
            .await?;
        progress.is_now(LayerState::Done);
        Ok(())
    }

    fn layer_lock(&self, diff_id: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self
            .layer_locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(&diff_id).and_then(std::sync::Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(diff_id, Arc::downgrade(&lock));
        lock
    }

    async fn fetch_layer(
        self: &Arc<Self>,
        session: &Session,
        reference: &Reference,
        layer: &LayerDescriptor,
        work: &TaskTracker,
        progress: &LayerProgress,
    ) -> Result<(), ImageError> {
        let begun = Instant::now();
        let (sender, receiver) = mpsc::channel(PARTS_IN_FLIGHT);
        let worker = Arc::clone(self);
        let image = reference.to_string();
        let expected = layer.clone();
        let taking_in = work.spawn_blocking(move || {
            let mut blob = BlobReader::new(receiver);
            worker.take_in(&image, &expected, &mut blob)
        });
        let download = session.blob(layer, sender, progress);
        let (downloaded, taken_in) = tokio::join!(download, joined(taking_in));
        // If both failed, then the second because of the first.
        downloaded.and(taken_in)?;
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(digest = %layer.digest, bytes = layer.size, elapsed_ms, "layer pulled");
        Ok(())
    }

    /// Takes a layer in from its blob, checks it and publishes it. Blocking.
    fn take_in(
        self: &Arc<Self>,
        image: &str,
        layer: &LayerDescriptor,
        blob: &mut BlobReader,
    ) -> Result<(), ImageError> {
        let temporary = self.temporary();
        let staging = tempfile::TempDir::new_in(&temporary)
            .map_err(ImageError::io("creating a directory in", &temporary))?;
        let directory = staging.path().join("layer");
        fs::create_dir(&directory).map_err(ImageError::io("creating", &directory))?;
        let object = format!("layer {}", layer.digest);
        let ingested = ingest(&mut *blob, &directory, self.limits).map_err(|error| {
            let (image, object) = (image.to_owned(), object.clone());
            match error {
                LayerError::Write(error) => ImageError::io("writing", &directory)(error),
                LayerError::TooLarge(_) | LayerError::TooMany => ImageError::TooLarge {
                    image,
                    object,
                    reason: chain(&error),
                },
                LayerError::Tar(_) | LayerError::Path { .. } | LayerError::Entry { .. } => {
                    // Perhaps it is not the layer at all: its digest will tell.
                    let rest = io::copy(&mut blob.take(MAX_REST), &mut io::sink());
                    tracing::debug!(?rest, "the rest of a layer that is refused");
                    ImageError::Refused {
                        image,
                        object,
                        reason: chain(&error),
                    }
                }
            }
        })?;
        let Ingested { diff_id, .. } = ingested;
        if diff_id != layer.diff_id {
            return Err(ImageError::Corrupt {
                image: image.to_owned(),
                object,
                reason: format!("its diff id is {diff_id}, not {}", layer.diff_id),
            });
        }
        sync_directory(&directory)?;
        let bytes = allocated(&directory, &FILES)?;
        let path = self.layer(&diff_id);
        let mut state = self.state();
        if state.layers.contains_key(&diff_id) {
            // Somebody took it in meanwhile, while this pull was being given up.
            return Ok(());
        }
        fs::rename(&directory, &path).map_err(ImageError::io("publishing", &path))?;
        state.layers.insert(diff_id, bytes);
        if !state.pins.contains_key(&diff_id) {
            // The pull failed elsewhere, or was given up.
            self.spare(&mut state, diff_id);
            self.collect_later();
        }
        drop(state);
        sync_parent(&path)
    }
}

/// Runs on a blocking thread; a panic there is one here.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work)).await
}

async fn joined<T>(task: JoinHandle<T>) -> T {
    task.await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// A download, seen from a blocking thread.
#[derive(Debug)]
struct BlobReader {
    receiver: mpsc::Receiver<BlobEvent>,
    part: Bytes,
    ended: bool,
}

impl BlobReader {
    fn new(receiver: mpsc::Receiver<BlobEvent>) -> Self {
        Self {
            receiver,
            part: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(BlobEvent::Data(part)) => self.part = part,
                Some(BlobEvent::End) => self.ended = true,
                None => return Err(io::Error::other("the download was given up")),
            }
        }
        let length = buffer.len().min(self.part.len());
        buffer[..length].copy_from_slice(&self.part.split_to(length));
        Ok(length)
    }
}

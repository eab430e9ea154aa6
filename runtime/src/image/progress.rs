//! How far a pull is, for whoever watches.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::digest::Digest;

/// What becomes of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerState {
    /// It waits for a turn, or for another pull that downloads it.
    Waiting = 0,
    /// It is on its way.
    Downloading = 1,
    /// It was checked and is in the store.
    Done = 2,
    /// It was in the store before.
    Present = 3,
}

/// How far one layer is. Written by the pull, read by anybody.
#[derive(Debug)]
pub(crate) struct LayerProgress {
    /// Of the blob.
    pub(crate) digest: Digest,
    /// Of the blob, in bytes.
    pub(crate) size: u64,
    received: AtomicU64,
    state: AtomicU8,
}

impl LayerProgress {
    pub(super) fn new(digest: Digest, size: u64) -> Self {
        Self {
            digest,
            size,
            received: AtomicU64::new(0),
            state: AtomicU8::new(LayerState::Waiting as u8),
        }
    }

    /// Bytes that have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// What becomes of it.
    pub(crate) fn state(&self) -> LayerState {
        match self.state.load(Ordering::Relaxed) {
            1 => LayerState::Downloading,
            2 => LayerState::Done,
            3 => LayerState::Present,
            _ => LayerState::Waiting,
        }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn is_now(&self, state: LayerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

/// How far a pull is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    layers: OnceLock<Vec<LayerProgress>>,
}

impl Progress {
    /// The image's layers, lowest first, each once; none before the manifest is known.
    pub(crate) fn layers(&self) -> &[LayerProgress] {
        self.layers.get().map_or(&[], Vec::as_slice)
    }

    /// Tells which layers there are. Only the first call counts.
    pub(super) fn begin(&self, layers: Vec<LayerProgress>) -> &[LayerProgress] {
        self.layers.get_or_init(|| layers)
    }
}

//! Removing what nothing refers to.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Instant;

use tempfile::TempDir;

use super::{Shared, State};
use crate::image::ImageError;
use crate::image::digest::Digest;

impl Shared {
    /// Removes images without a name and layers that neither an image nor a pull needs and that are
    /// not kept for another try. Their files leave the store at once; their space is free when this
    /// returns and the last disk that uses them is closed. Blocking.
    pub(super) fn collect_garbage(&self) {
        let graves = {
            let order = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            self.bury_garbage(&order)
        };
        drop(graves);
    }

    /// Takes the garbage out of the store; dropping the result deletes it. Whoever adds an image
    /// holds `changes` from before it has a name until it has one, so none is taken in between.
    pub(super) fn bury_garbage(&self, _changes: &MutexGuard<'_, ()>) -> Vec<TempDir> {
        let mut graves = Vec::new();
        let mut state = self.state();
        let State {
            images,
            names,
            layers,
            pins,
            spare,
            ..
        } = &mut *state;
        let named: HashSet<Digest> = names.values().copied().collect();
        images.retain(|id, _| {
            let keep = named.contains(id);
            if !keep {
                graves.extend(self.bury(&self.image(id)));
            }
            keep
        });
        let used: HashSet<Digest> = images
            .values()
            .flat_map(|image| image.record.layers.iter().map(|layer| layer.diff_id))
            .collect();
        let now = Instant::now();
        spare.retain(|diff_id, until| !used.contains(diff_id) && now < *until);
        layers.retain(|diff_id, _| {
            let keep =
                used.contains(diff_id) || pins.contains_key(diff_id) || spare.contains_key(diff_id);
            if !keep {
                graves.extend(self.bury(&self.layer(diff_id)));
            }
            keep
        });
        graves
    }

    /// Moves a published directory out of the way; dropping the result deletes it.
    fn bury(&self, path: &Path) -> Option<TempDir> {
        let grave = TempDir::new_in(self.temporary());
        let moved = grave.and_then(|grave| {
            fs::rename(path, grave.path().join("removed"))?;
            Ok(grave)
        });
        moved
            .inspect_err(|error| {
                // It is unknown from now on, and swept when the store opens the next time.
                tracing::warn!(path = %path.display(), %error, "not removed");
            })
            .ok()
    }

    /// Deletes a directory that the state does not know.
    pub(super) fn discard(&self, path: &Path) {
        drop(self.bury(path));
    }
}

impl Shared {
    /// Keeps a layer that nobody needs for a while.
    pub(super) fn spare(&self, state: &mut State, diff_id: Digest) {
        state.spare.insert(diff_id, Instant::now() + self.keep);
    }

    /// Collects the garbage once more when what is kept now need not be kept any longer. Without a
    /// runtime nobody does, until the store opens the next time.
    pub(super) fn collect_later(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (shared, keep) = (Arc::downgrade(self), self.keep);
        runtime.spawn(async move {
            tokio::time::sleep(keep).await;
            if let Some(shared) = shared.upgrade() {
                drop(tokio::task::spawn_blocking(move || {
                    shared.collect_garbage()
                }));
            }
        });
    }
}

/// What becomes of the layers of a pull that ended without making them an image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leftovers {
    /// They stay for a while: trying again may help, and will need them.
    Keep,
    /// They go: the image cannot be had.
    Remove,
    /// They go, and so does what other pulls left: there is no room for it.
    RemoveAll,
}

impl Leftovers {
    /// What a pull that failed like this leaves.
    pub(super) fn of(error: &ImageError) -> Self {
        match error {
            ImageError::Unavailable { .. }
            | ImageError::NotInRegistry { .. }
            | ImageError::Denied { .. } => Self::Keep,
            ImageError::DiskFull { .. } => Self::RemoveAll,
            ImageError::InvalidReference { .. }
            | ImageError::NotFound { .. }
            | ImageError::NoPlatform { .. }
            | ImageError::Corrupt { .. }
            | ImageError::Refused { .. }
            | ImageError::TooLarge { .. }
            | ImageError::Io { .. }
            | ImageError::Damaged { .. } => Self::Remove,
        }
    }
}

/// Layers that a pull needs: while this lives they are not garbage.
#[derive(Debug)]
pub(super) struct Pins {
    shared: Arc<Shared>,
    layers: Vec<Digest>,
}

impl Pins {
    pub(super) fn new(shared: &Arc<Shared>, layers: Vec<Digest>) -> Self {
        let mut state = shared.state();
        for layer in &layers {
            *state.pins.entry(*layer).or_default() += 1;
        }
        drop(state);
        Self {
            shared: Arc::clone(shared),
            layers,
        }
    }

    /// Takes the pins away when the pull has ended. Blocking.
    pub(super) fn release(mut self, leftovers: Leftovers) {
        self.unpin(leftovers);
        self.shared.collect_garbage();
    }

    /// Whether anything was pinned.
    fn unpin(&mut self, leftovers: Leftovers) -> bool {
        let mut state = self.shared.state();
        if leftovers == Leftovers::RemoveAll {
            state.spare.clear();
        }
        let mut kept = false;
        for layer in &self.layers {
            if let Some(pins) = state.pins.get_mut(layer) {
                *pins -= 1;
                if *pins == 0 {
                    state.pins.remove(layer);
                }
            }
            if leftovers == Leftovers::Keep && state.layers.contains_key(layer) {
                self.shared.spare(&mut state, *layer);
                kept = true;
            }
        }
        drop(state);
        if kept {
            self.shared.collect_later();
        }
        !std::mem::take(&mut self.layers).is_empty()
    }
}

impl Drop for Pins {
    /// For a pull that was given up, as soon as there is a thread for it: futures are dropped on
    /// threads that must not block.
    fn drop(&mut self) {
        if !self.unpin(Leftovers::Keep) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || shared.collect_garbage())),
            Err(_no_runtime) => shared.collect_garbage(),
        }
    }
}

//! Removing images and names.

use std::sync::{Arc, PoisonError};

use super::record::{NAMES, write_names};
use super::{ImageStore, Shared, State};
use crate::image::ImageError;
use crate::image::digest::Digest;
use crate::image::reference::Reference;

impl ImageStore {
    /// Removes one tag, and the image with its last one; or, given an id, the image with all its
    /// names. An image that is not there is `Ok`, as the CRI wants it. Disks that are open stay
    /// readable.
    ///
    /// # Errors
    /// The names cannot be written; nothing has changed then.
    pub(crate) async fn remove(&self, reference_or_id: &str) -> Result<(), ImageError> {
        let shared = Arc::clone(&self.shared);
        let text = reference_or_id.to_owned();
        tokio::task::spawn_blocking(move || shared.remove(&text))
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

impl Shared {
    fn remove(&self, text: &str) -> Result<(), ImageError> {
        let graves = {
            let order = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            let names = {
                let state = self.state();
                let mut names = state.names.clone();
                for name in state.names_to_remove(text) {
                    names.remove(&name);
                }
                if names == state.names {
                    return Ok(());
                }
                names
            };
            write_names(&self.root.join(NAMES), &names, &self.temporary())?;
            self.state().names = names;
            self.bury_garbage(&order)
        };
        drop(graves);
        Ok(())
    }
}

impl State {
    fn names_to_remove(&self, text: &str) -> Vec<String> {
        let name = Reference::parse(text)
            .ok()
            .map(|reference| reference.to_string());
        if let Some((name, id)) = name.and_then(|name| self.names.get_key_value(&name)) {
            // Digests alone do not keep an image whose last tag is taken away.
            let others_stay = self
                .names_of(id)
                .any(|other| other != name && (name.contains('@') || !other.contains('@')));
            if others_stay {
                return vec![name.clone()];
            }
            return self.names_of(id).cloned().collect();
        }
        match self.lookup_id(text) {
            Some(id) => self.names_of(&id).cloned().collect(),
            None => Vec::new(),
        }
    }

    fn names_of(&self, id: &Digest) -> impl Iterator<Item = &String> {
        self.names
            .iter()
            .filter(move |(_, named)| *named == id)
            .map(|(name, _)| name)
    }
}

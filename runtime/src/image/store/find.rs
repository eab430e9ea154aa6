//! Finding an image by whatever somebody calls it.

use super::{ImageStore, State};
use crate::image::Image;
use crate::image::digest::Digest;
use crate::image::reference::Reference;

impl ImageStore {
    /// The image of this tag, digest reference, id, or beginning of an id that no other has.
    pub(crate) fn find(&self, reference_or_id: &str) -> Option<Image> {
        let state = self.shared.state();
        let id = state.lookup(reference_or_id)?;
        state.describe(&id)
    }
}

impl State {
    /// Names come first: `cafe` may be a repository. So does containerd.
    pub(super) fn lookup(&self, text: &str) -> Option<Digest> {
        match self.reference(text) {
            Some(name) => self.names.get(&name).copied(),
            None => self.lookup_id(text),
        }
    }

    /// The name in the store that `text` stands for, if it is one.
    pub(super) fn reference(&self, text: &str) -> Option<String> {
        let name = Reference::parse(text).ok()?.to_string();
        self.names.contains_key(&name).then_some(name)
    }

    /// With or without `sha256:`, whole or only the beginning.
    pub(super) fn lookup_id(&self, text: &str) -> Option<Digest> {
        let beginning = text.strip_prefix("sha256:").unwrap_or(text);
        if beginning.is_empty() {
            return None;
        }
        let mut matching = self
            .images
            .keys()
            .filter(|id| id.hex().starts_with(beginning));
        let first = matching.next()?;
        matching.next().is_none().then_some(*first)
    }
}

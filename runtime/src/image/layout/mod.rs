//! Image layouts on this machine: a folder or a tar of it (image-spec, "Image Layout").
//!
//! Nothing in a layout is believed here: it is *served* ([`Served`]) as a registry would, at a unix
//! socket, and the daemon pulls from there with all of its checks. So `isopod image import` is a
//! pull, and archives have no path into the store of their own. The socket is in a folder that goes with
//! the command ([`Place`]); what commands leave that were killed, the next daemon removes.
//!
//! Used by the command that imports, on a runtime of its own, and by a daemon that starts.

mod error;
mod open;
mod place;
mod serve;
mod unpack;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

pub(crate) use self::error::LayoutError;
pub(crate) use self::place::{Place, sweep as sweep_places};
pub(crate) use self::serve::Served;
pub(crate) use self::unpack::unpack;
use super::digest::Digest;

/// What containerd calls an image, whole.
const NAME: &str = "io.containerd.image.name";
/// What everybody calls an image: sometimes all of its name, sometimes its tag alone.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout, open.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// `index.json`, byte for byte.
    index: Bytes,
    manifests: Vec<Manifest>,
    blobs: Blobs,
}

/// Where the blobs are.
#[derive(Debug, Clone)]
enum Blobs {
    /// `blobs/` of a folder.
    Folder(PathBuf),
    /// Parts of an archive: offset and length, in bytes.
    Archive(Arc<File>, Arc<HashMap<Digest, (u64, u64)>>),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    manifests: Vec<Manifest>,
}

/// A descriptor in `index.json`.
#[derive(Debug, Clone, Deserialize)]
struct Manifest {
    digest: Digest,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

/// An image of a layout, and what to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedImage {
    /// The reference to pull it by.
    pub(crate) name: String,
    /// What bears that name: a manifest or an index, `None` for the layout's own index.
    target: Option<Digest>,
}

impl Manifest {
    fn name(&self) -> Option<&str> {
        let whole = self.annotations.get(NAME);
        // A tag alone would be taken for a repository.
        let whole = whole.or_else(|| {
            let name = self.annotations.get(REF_NAME)?;
            name.contains([':', '/', '@']).then_some(name)
        });
        whole.map(String::as_str)
    }
}

impl Layout {
    /// The images that have names, each once; or, if `name` is given, the layout's only image under
    /// this name.
    ///
    /// # Errors
    /// There is none, there are several for one name, or one has no name.
    pub(crate) fn images(&self, name: Option<&str>) -> Result<Vec<NamedImage>, LayoutError> {
        let mut targets: Vec<Digest> = self.manifests.iter().map(|image| image.digest).collect();
        targets.sort_unstable();
        targets.dedup();
        if let Some(name) = name {
            let target = match targets.as_slice() {
                [] => return Err(LayoutError::Empty),
                [one] => Some(*one),
                // One image for several platforms, unless they have names of their own.
                _ if self.manifests.iter().all(|image| image.name().is_none()) => None,
                _ => return Err(LayoutError::Several(targets.len())),
            };
            let name = name.to_owned();
            return Ok(vec![NamedImage { name, target }]);
        }
        let mut images: Vec<NamedImage> = Vec::new();
        for image in &self.manifests {
            let Some(name) = image.name() else {
                return Err(LayoutError::Nameless(image.digest.to_string()));
            };
            if !images.iter().any(|known| known.name == name) {
                images.push(NamedImage {
                    name: name.to_owned(),
                    target: Some(image.digest),
                });
            }
        }
        match images.is_empty() {
            true => Err(LayoutError::Empty),
            false => Ok(images),
        }
    }

    /// A blob's file, and where in it the blob is: offset and length, in bytes. Blocking.
    fn blob(&self, digest: &Digest) -> std::io::Result<(File, u64, u64)> {
        match &self.blobs {
            Blobs::Folder(folder) => {
                let file = File::open(folder.join("sha256").join(digest.hex()))?;
                let length = file.metadata()?.len();
                Ok((file, 0, length))
            }
            Blobs::Archive(file, places) => {
                let place = places.get(digest);
                let (offset, length) = place.copied().ok_or(std::io::ErrorKind::NotFound)?;
                Ok((file.try_clone()?, offset, length))
            }
        }
    }
}

//! Which image a reference names, and what it is made of.

use bytes::Bytes;

use super::Session;
use super::request::Request;
use crate::image::ImageError;
use crate::image::digest::Digest;
use crate::image::manifest::{ACCEPT, Document, LayerDescriptor, Leads, Manifest, ManifestError};
use crate::image::reference::Version;

/// Documents on the way to an image. An index in an index in an index is somebody's joke.
const MAX_DOCUMENTS: usize = 3;

/// An image that a registry has.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Digest of what the reference names: an index, or a manifest.
    pub(crate) digest: Digest,
    /// Digest of the configuration: the image's id.
    pub(crate) id: Digest,
    /// The configuration, byte for byte.
    pub(crate) config: Bytes,
    /// The layers, lowest first.
    pub(crate) layers: Vec<LayerDescriptor>,
}

impl Session {
    /// Asks the registry which image the reference names.
    ///
    /// # Errors
    /// It has none; or not for linux/amd64; or what it has is malformed or unsupported.
    pub(crate) async fn resolve(&self) -> Result<Resolved, ImageError> {
        let (document, digest) = match &self.reference.version {
            Version::Tag(tag) => self.manifest(tag, None).await?,
            Version::Digest(digest) => self.manifest(&digest.to_string(), Some(*digest)).await?,
        };
        let mut leads = document.leads().map_err(|error| self.said(error))?;
        for _ in 0..MAX_DOCUMENTS {
            match leads {
                Leads::Image(manifest) => return self.image(manifest, digest).await,
                Leads::To(next) => {
                    let (document, _) = self.manifest(&next.to_string(), Some(next)).await?;
                    leads = document.leads().map_err(|error| self.said(error))?;
                }
            }
        }
        Err(self.refused("index", "too many indexes inside one another"))
    }

    async fn manifest(
        &self,
        name: &str,
        digest: Option<Digest>,
    ) -> Result<(Document, Digest), ImageError> {
        let request = Request {
            kind: "manifests",
            name,
            accept: ACCEPT,
            offset: 0,
        };
        let body = self.document("manifest", request, digest).await?;
        let document = Document::parse(&body).map_err(|error| self.said(error))?;
        let digest = digest.unwrap_or_else(|| Digest::of(&body));
        Ok((document, digest))
    }

    async fn image(&self, manifest: Manifest, digest: Digest) -> Result<Resolved, ImageError> {
        let request = Request {
            kind: "blobs",
            name: &manifest.id.to_string(),
            accept: "*/*",
            offset: 0,
        };
        let config = self.document("config", request, Some(manifest.id)).await?;
        let layers = manifest.layers(&config).map_err(|error| self.said(error))?;
        Ok(Resolved {
            digest,
            id: manifest.id,
            config,
            layers,
        })
    }

    /// The same, naming the image.
    fn said(&self, error: ManifestError) -> ImageError {
        match error {
            ManifestError::Refused { object, reason } => self.refused(&object, reason),
            ManifestError::NoPlatform => ImageError::NoPlatform {
                image: self.reference.to_string(),
            },
        }
    }
}

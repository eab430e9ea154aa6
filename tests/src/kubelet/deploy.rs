//! The files in `deploy/`, which people copy.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    checkout
        .expect("tests/ lies in the checkout")
        .join("deploy")
        .join(name)
}

/// The kubelet's configuration.
#[must_use]
pub fn kubelet_config() -> PathBuf {
    file("kubelet-config.yaml")
}

/// The `RuntimeClass`.
#[must_use]
pub fn runtime_class() -> PathBuf {
    file("runtime-class.yaml")
}

/// The daemon's systemd unit.
#[must_use]
pub fn unit() -> PathBuf {
    file("isopod.service")
}

/// A YAML file.
///
/// # Errors
/// It cannot be read, or is no YAML.
pub fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_yaml_ng::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// What a pod costs beside its containers, as the `RuntimeClass` says: a pod's `spec.overhead`.
///
/// # Errors
/// It says nothing.
pub fn overhead() -> Result<Value> {
    let mut class = read(&runtime_class())?;
    let overhead = class["overhead"]["podFixed"].take();
    overhead
        .is_object()
        .then_some(overhead)
        .context("the RuntimeClass has no overhead")
}

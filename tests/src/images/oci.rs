//! An image as an OCI layout: a folder of blobs by digest, with an index.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::layer::{Compression, LayerDigests, LayerWriter, digest};

/// Writes one image into a folder.
#[derive(Debug)]
pub struct ImageWriter {
    folder: PathBuf,
    layers: Vec<LayerDigests>,
}

/// An image that is written.
#[derive(Debug, Clone)]
pub struct ImageDigests {
    /// Of the manifest: what `name@sha256:...` names.
    pub manifest: String,
    /// Of the configuration: the image's id in CRI.
    pub config: String,
    /// Of the layers, the lowest first.
    pub layers: Vec<LayerDigests>,
}

impl ImageWriter {
    /// Starts an image in `folder`, which must not exist.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("blobs/sha256"))
            .with_context(|| format!("making {}", folder.display()))?;
        fs::write(
            folder.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        Ok(Self {
            folder: folder.to_owned(),
            layers: Vec::new(),
        })
    }

    /// Adds a layer on top.
    ///
    /// # Errors
    /// What `fill` returns; writing failed.
    pub fn layer(
        &mut self,
        compression: Compression,
        fill: impl FnOnce(&mut LayerWriter) -> Result<()>,
    ) -> Result<()> {
        let path = self.folder.join("layer.part");
        let mut layer = LayerWriter::new(File::create(&path)?, compression)?;
        fill(&mut layer)?;
        let digests = layer.finish()?;
        fs::rename(&path, self.blob(&digests.digest))?;
        self.layers.push(digests);
        Ok(())
    }

    /// Makes the configuration tell another digest of the uppermost layer's tar stream.
    pub fn forge_diff_id(&mut self, diff_id: String) {
        if let Some(layer) = self.layers.last_mut() {
            layer.diff_id = diff_id;
        }
    }

    /// Writes configuration (`config` is its `config` object), manifest and index.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(self, config: &Value) -> Result<ImageDigests> {
        let config = json!({
            "created": "2023-11-14T22:13:20Z",
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
            },
        });
        let config = self.add(&config)?;
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| descriptor(layer.media_type, &layer.digest, layer.size))
            .collect();
        let manifest = self.add(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config.0, config.1),
            "layers": layers,
        }))?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [descriptor(MANIFEST, &manifest.0, manifest.1)],
        });
        fs::write(self.folder.join("index.json"), index.to_string())?;
        Ok(ImageDigests {
            manifest: manifest.0,
            config: config.0,
            layers: self.layers,
        })
    }

    fn add(&self, value: &Value) -> Result<(String, u64)> {
        let bytes = value.to_string().into_bytes();
        let digest = digest(&bytes);
        fs::write(self.blob(&digest), &bytes)?;
        Ok((digest, bytes.len() as u64))
    }

    fn blob(&self, digest: &str) -> PathBuf {
        blob_path(&self.folder, digest)
    }
}

/// Media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Media type of a configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Where an OCI layout keeps a blob.
#[must_use]
pub fn blob_path(folder: &Path, digest: &str) -> PathBuf {
    folder
        .join("blobs/sha256")
        .join(digest.trim_start_matches("sha256:"))
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

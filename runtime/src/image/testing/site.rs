//! An image in memory, and the honest answers about it.

use std::collections::HashMap;
use std::path::Path;

use isopod_tests::images::layer::{Compression, Entry, LayerWriter};
use isopod_tests::images::oci::{ImageDigests, ImageWriter, MANIFEST};
use serde_json::json;
use tempfile::TempDir;

use super::server::{Asked, Reply};

/// An image: its documents and blobs by digest.
#[derive(Debug, Clone)]
pub(in crate::image) struct Site {
    /// What it is made of.
    pub(in crate::image) digests: ImageDigests,
    /// Everything, by digest.
    pub(in crate::image) blobs: HashMap<String, Vec<u8>>,
}

impl Site {
    /// An image of these layers.
    pub(in crate::image) fn new(layers: &[&[Entry]]) -> Self {
        Self::with(layers.len(), |number, layer| {
            for entry in layers[number] {
                layer.add(entry).expect("an entry");
            }
        })
    }

    /// An image of layers that `fill` fills.
    pub(in crate::image) fn with(layers: usize, fill: impl Fn(usize, &mut LayerWriter)) -> Self {
        let directory = TempDir::new().expect("a directory");
        let mut image = ImageWriter::new(directory.path()).expect("an image");
        for number in 0..layers {
            let filled = image.layer(Compression::Gzip, |layer| {
                fill(number, layer);
                Ok(())
            });
            filled.expect("a layer");
        }
        let digests = image.finish(&json!({ "User": "7:8" })).expect("an image");
        let blobs = std::fs::read_dir(directory.path().join("blobs/sha256"))
            .expect("blobs")
            .map(|entry| {
                let path = entry.expect("a blob").path();
                let name = path
                    .file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned();
                (
                    format!("sha256:{name}"),
                    std::fs::read(path).expect("a blob"),
                )
            });
        Self {
            digests,
            blobs: blobs.collect(),
        }
    }

    /// Writes an OCI layout in which the image is called `it`.
    pub(in crate::image) fn write(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("a directory");
        for (digest, blob) in &self.blobs {
            std::fs::write(blobs.join(&digest[7..]), blob).expect("a blob");
        }
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": MANIFEST,
                "digest": self.digests.manifest,
                "size": self.blobs[&self.digests.manifest].len(),
                "annotations": { "org.opencontainers.image.ref.name": "it" },
            }],
        });
        std::fs::write(directory.join("index.json"), index.to_string()).expect("an index");
        let layout = r#"{"imageLayoutVersion":"1.0.0"}"#;
        std::fs::write(directory.join("oci-layout"), layout).expect("a layout");
    }

    /// The digest of a layer's blob.
    pub(in crate::image) fn layer(&self, number: usize) -> &str {
        &self.digests.layers[number].digest
    }

    /// What an honest registry answers, ranges included.
    pub(in crate::image) fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        if path.contains("/manifests/") && !name.starts_with("sha256:") {
            return Reply::new(200, self.blobs[&self.digests.manifest].clone())
                .header("Content-Type", MANIFEST);
        }
        let Some(blob) = self.blobs.get(name) else {
            return Reply::new(404, "");
        };
        let start = asked.headers.get("range").map(|range| {
            let range = range
                .strip_prefix("bytes=")
                .and_then(|range| range.strip_suffix('-'));
            range
                .expect("an open range")
                .parse::<usize>()
                .expect("a number")
        });
        match start {
            None => Reply::new(200, blob.clone()),
            Some(start) => Reply::new(206, &blob[start..]).header(
                "Content-Range",
                format!("bytes {start}-{}/{}", blob.len() - 1, blob.len()),
            ),
        }
    }
}

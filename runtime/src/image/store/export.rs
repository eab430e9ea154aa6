//! Writing images as an OCI archive: a tar of an image layout (image-spec, "Image Layout").
//!
//! Layers are written uncompressed: their digests are then the diff ids, known before the first
//! byte. So an image keeps its id, and its manifest, which names compressed layers in a registry,
//! is another one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::record::CONFIG;
use super::{ImageStore, Shared, State};
use crate::image::ImageError;
use crate::image::digest::{Digest, Hasher};
use crate::image::layer::{DATA, RECIPE, Recipe};
use crate::image::tar;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// An archive to be written; its files are open, so images can be removed meanwhile.
#[derive(Debug)]
pub(crate) struct Export {
    /// Manifests and configurations, by digest.
    documents: BTreeMap<Digest, Vec<u8>>,
    layers: BTreeMap<Digest, (PathBuf, Recipe)>,
    /// Descriptors of the manifests.
    manifests: Vec<Value>,
}

impl ImageStore {
    /// Prepares an archive of these images, references or ids. Blocking, for the time of a few `open`
    /// calls per layer.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; a file cannot be opened.
    pub(crate) fn export(&self, images: &[String]) -> Result<Export, ImageError> {
        // As for a disk: what is known while the state is locked can be opened.
        let state = self.shared.state();
        let mut export = Export {
            documents: BTreeMap::new(),
            layers: BTreeMap::new(),
            manifests: Vec::new(),
        };
        for text in images {
            let id = state.lookup(text).ok_or_else(|| ImageError::NotFound {
                reference: text.clone(),
            })?;
            export.add(&self.shared, &state, id, text)?;
        }
        Ok(export)
    }
}

impl Export {
    fn add(
        &mut self,
        shared: &Shared,
        state: &State,
        id: Digest,
        text: &str,
    ) -> Result<(), ImageError> {
        let not_found = || ImageError::NotFound {
            reference: text.to_owned(),
        };
        let image = state.images.get(&id).ok_or_else(not_found)?;
        let path = shared.image(&id).join(CONFIG);
        let config = std::fs::read(&path).map_err(ImageError::io("reading", &path))?;
        let mut layers = Vec::new();
        for layer in &image.record.layers {
            let directory = shared.layer(&layer.diff_id);
            let open = |name: &str| File::open(directory.join(name));
            let recipe = open(RECIPE)
                .and_then(|recipe| Recipe::new(recipe, open(DATA)?))
                .map_err(ImageError::io("opening", &directory))?;
            layers.push(json!({
                "mediaType": LAYER_TYPE,
                "digest": layer.diff_id,
                "size": recipe.bytes,
            }));
            self.layers
                .insert(layer.diff_id, (directory.join(DATA), recipe));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": { "mediaType": CONFIG_TYPE, "digest": id, "size": config.len() },
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        for annotations in state.annotations(&id, text) {
            self.manifests.push(json!({
                "mediaType": MANIFEST_TYPE,
                "digest": digest,
                "size": manifest.len(),
                "platform": { "os": "linux", "architecture": "amd64" },
                "annotations": annotations,
            }));
        }
        self.documents.insert(id, config);
        self.documents.insert(digest, manifest);
        Ok(())
    }

    /// Writes the archive. Blocking.
    ///
    /// # Errors
    /// `output` fails; or a layer is not what it was, and the archive good for nothing.
    pub(crate) fn write(self, output: &mut impl Write) -> Result<(), ImageError> {
        let name = PathBuf::from("the archive");
        let io = |error| ImageError::io("writing", &name)(error);
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        file(output, "oci-layout", layout).map_err(io)?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": self.manifests,
        });
        file(output, "index.json", index.to_string().as_bytes()).map_err(io)?;
        for (digest, document) in &self.documents {
            file(output, &blob(digest), document).map_err(io)?;
        }
        for (diff_id, (path, recipe)) in self.layers {
            let bytes = recipe.bytes;
            let header = tar::file_header(&blob(&diff_id), bytes);
            output.write_all(&header).map_err(io)?;
            let mut summed = Summed {
                output,
                hasher: Hasher::default(),
                bytes: 0,
            };
            recipe.write(&mut summed).map_err(io)?;
            if summed.bytes != bytes || summed.hasher.finish() != diff_id {
                return Err(ImageError::Damaged {
                    path,
                    reason: "the layer's archive cannot be made again".to_owned(),
                });
            }
            output.write_all(tar::padding(bytes)).map_err(io)?;
        }
        output.write_all(&tar::END).map_err(io)?;
        output.flush().map_err(io)
    }
}

impl State {
    /// What archives call the image: by the reference that was asked for, or else by all of its tags.
    fn annotations(&self, id: &Digest, asked: &str) -> Vec<Value> {
        let asked_by_name = self.reference(asked).filter(|name| !name.contains('@'));
        let names: Vec<String> = match asked_by_name {
            Some(name) => vec![name],
            None => self
                .names
                .iter()
                .filter(|(name, named)| *named == id && !name.contains('@'))
                .map(|(name, _)| name.clone())
                .collect(),
        };
        if names.is_empty() {
            return vec![json!({})];
        }
        let annotations = names.iter().map(|name| {
            // The one is containerd's and whole; of the other, tools expect the tag alone.
            let tag = name.rsplit(':').next().unwrap_or_default();
            json!({
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": tag,
            })
        });
        annotations.collect()
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn file(output: &mut impl Write, name: &str, data: &[u8]) -> io::Result<()> {
    let size = data.len() as u64;
    output.write_all(&tar::file_header(name, size))?;
    output.write_all(data)?;
    output.write_all(tar::padding(size))
}

/// Counts and hashes what passes through.
struct Summed<'a, W> {
    output: &'a mut W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Write for Summed<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = self.output.write(data)?;
        self.hasher.update(&data[..length]);
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

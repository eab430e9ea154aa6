//! The records on disk, and how they get there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::image::ImageError;
use crate::image::digest::Digest;

/// Version of both records. Raised with every change that older daemons would misread.
const VERSION: u32 = 1;

/// Name of an image's record in its directory.
pub(super) const RECORD: &str = "record.json";
/// Name of an image's configuration, byte for byte as the registry had it.
pub(super) const CONFIG: &str = "config.json";
/// Name of an image's EROFS metadata.
pub(super) const METADATA: &str = "metadata";
/// Name of the file with all names.
pub(super) const NAMES: &str = "names.json";

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageRecord {
    version: u32,
    /// Length of the EROFS metadata, in blocks of 4096 bytes.
    pub(super) metadata_blocks: u32,
    /// Lowest first.
    pub(super) layers: Vec<LayerRecord>,
    /// Which of them follow the metadata on the disk, in this order.
    pub(super) disk: Vec<usize>,
}

/// One of an image's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerRecord {
    /// Which.
    pub(super) diff_id: Digest,
    /// Length of its data blob, in blocks of 4096 bytes.
    pub(super) blocks: u32,
}

impl ImageRecord {
    pub(super) fn new(metadata_blocks: u32, layers: Vec<LayerRecord>, disk: Vec<usize>) -> Self {
        Self {
            version: VERSION,
            metadata_blocks,
            layers,
            disk,
        }
    }

    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        let record: Self = read_json(path)?;
        if record.version != VERSION {
            return Err(damaged(
                path,
                format!("version {} is unknown", record.version),
            ));
        }
        if record
            .disk
            .iter()
            .any(|&layer| layer >= record.layers.len())
        {
            return Err(damaged(
                path,
                "a layer that the image does not have".to_owned(),
            ));
        }
        Ok(record)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamesRecord {
    version: u32,
    names: BTreeMap<String, Digest>,
}

/// Reads all names; none if the file is not there.
pub(super) fn read_names(path: &Path) -> Result<BTreeMap<String, Digest>, ImageError> {
    if !path
        .try_exists()
        .map_err(ImageError::io("looking for", path))?
    {
        return Ok(BTreeMap::new());
    }
    let record: NamesRecord = read_json(path)?;
    if record.version != VERSION {
        return Err(damaged(
            path,
            format!("version {} is unknown", record.version),
        ));
    }
    Ok(record.names)
}

/// Replaces the file with all names, durably. `temporary` is a directory on the same filesystem.
pub(super) fn write_names(
    path: &Path,
    names: &BTreeMap<String, Digest>,
    temporary: &Path,
) -> Result<(), ImageError> {
    let record = NamesRecord {
        version: VERSION,
        names: names.clone(),
    };
    let mut file = tempfile::NamedTempFile::new_in(temporary)
        .map_err(ImageError::io("creating a file in", temporary))?;
    let text = serde_json::to_vec_pretty(&record).map_err(io::Error::other);
    text.and_then(|text| file.write_all(&text))
        .and_then(|()| file.as_file().sync_all())
        .map_err(ImageError::io("writing", path))?;
    file.persist(path)
        .map_err(|error| ImageError::io("replacing", path)(error.error))?;
    sync_parent(path)
}

/// Writes a file and makes it durable.
pub(super) fn write_durably(path: &Path, data: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(data)?;
    file.sync_all()
}

/// Makes a rename into `path`'s directory durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), ImageError> {
    let parent = path.parent().unwrap_or(path);
    sync_directory(parent)
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(ImageError::io("synchronising", path))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    let text = fs::read(path).map_err(ImageError::io("reading", path))?;
    serde_json::from_slice(&text).map_err(|error| damaged(path, error.to_string()))
}

fn damaged(path: &Path, reason: String) -> ImageError {
    ImageError::Damaged {
        path: path.to_owned(),
        reason,
    }
}

//! What the store takes of its filesystem.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::ImageStore;
use crate::image::{ImageError, Usage};

impl ImageStore {
    /// Counts every file and directory of the store, unfinished pulls included. Blocking: the store
    /// has a handful of files per image.
    ///
    /// # Errors
    /// The store's directories cannot be read.
    pub(crate) fn usage(&self) -> Result<Usage, ImageError> {
        let mut usage = Usage {
            bytes: 0,
            inodes: 0,
        };
        add(&self.shared.root, &mut usage)?;
        Ok(usage)
    }
}

fn add(path: &Path, usage: &mut Usage) -> Result<(), ImageError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // A pull that ends takes its files with it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ImageError::io("looking at", path)(error)),
    };
    usage.bytes += metadata.blocks() * 512;
    usage.inodes += 1;
    if metadata.is_dir() {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(ImageError::io("listing", path)(error)),
        };
        for entry in entries {
            add(
                &entry.map_err(ImageError::io("listing", path))?.path(),
                usage,
            )?;
        }
    }
    Ok(())
}

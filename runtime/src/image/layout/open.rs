//! Opening a layout: a folder, a tar, a compressed tar, or one that comes through a pipe.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Blobs, Index, Layout, LayoutError};
use crate::chain::chain;
use crate::image::digest::Digest;
use crate::image::layer::Decompressor;
use crate::image::limits::MAX_DOCUMENT_BYTES;
use crate::image::tar::{EntryKind, Reader};

/// Entries of an archive at most: thousands of images.
const MAX_ENTRIES: usize = 1 << 20;

const INDEX: &str = "index.json";

impl Layout {
    /// Opens the layout at `path`, or the one that comes in through `-`. Blocking: an archive is
    /// read once to its end, and what is compressed or cannot be read twice goes to a nameless file
    /// first.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub(crate) fn open(path: &Path) -> Result<Self, LayoutError> {
        if path == Path::new("-") {
            return Self::spooled(io::stdin().lock(), Path::new("standard input"));
        }
        let read = LayoutError::read(path);
        if path.is_dir() {
            return Self::folder(path);
        }
        let mut file = File::open(path).map_err(read)?;
        let mut start = [0; 4];
        let known = file.read(&mut start).and_then(|_| file.rewind());
        match (known, start) {
            (Ok(()), [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd]) | (Err(_), _) => {
                Self::spooled(file, path)
            }
            (Ok(()), _) => Self::archive(file, path),
        }
    }

    fn folder(path: &Path) -> Result<Self, LayoutError> {
        let index = path.join(INDEX);
        let text = File::open(&index)
            .and_then(bounded)
            .map_err(LayoutError::read(&index))?;
        Self::new(path, text, Blobs::Folder(path.join("blobs")))
    }

    fn spooled(input: impl Read, path: &Path) -> Result<Self, LayoutError> {
        let read = LayoutError::read(path);
        let spooled = tempfile::tempfile().and_then(|mut file| {
            io::copy(&mut Decompressor::new(input)?, &mut file)?;
            file.rewind()?;
            Ok(file)
        });
        Self::archive(spooled.map_err(read)?, path)
    }

    fn archive(file: File, path: &Path) -> Result<Self, LayoutError> {
        let malformed = |reason: String| LayoutError::Archive {
            path: path.to_owned(),
            reason,
        };
        let shared = Arc::new(file);
        let mut tar = Reader::new(BufReader::with_capacity(256 << 10, &*shared));
        let mut places = HashMap::new();
        let mut index = None;
        loop {
            let entry = tar.next_entry().map_err(|error| malformed(chain(&error)))?;
            let Some(entry) = entry else { break };
            if entry.kind != EntryKind::File || entry.segments.is_some() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path).into_owned();
            let name = name.trim_start_matches("./");
            if name == INDEX {
                index = Some((tar.position(), entry.size));
            } else if let Some(digest) = name
                .strip_prefix("blobs/sha256/")
                .and_then(|name| Digest::from_hex(name).ok())
            {
                places.insert(digest, (tar.position(), entry.size));
            }
            if places.len() > MAX_ENTRIES {
                return Err(malformed("too many blobs".to_owned()));
            }
        }
        let Some((offset, length)) = index else {
            return Err(malformed(format!("it has no {INDEX}")));
        };
        let text = part(&shared, offset, length).map_err(LayoutError::read(path))?;
        Self::new(path, text, Blobs::Archive(shared, Arc::new(places)))
    }

    fn new(path: &Path, text: Vec<u8>, blobs: Blobs) -> Result<Self, LayoutError> {
        let refuse = |reason: String| LayoutError::Index {
            path: path.to_owned(),
            reason,
        };
        let index: Index =
            serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        if index.schema_version != 2 {
            return Err(refuse("its schema version is not 2".to_owned()));
        }
        Ok(Self {
            index: Bytes::from(text),
            manifests: index.manifests,
            blobs,
        })
    }
}

fn bounded(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(io::Error::other(format!("over {MAX_DOCUMENT_BYTES} bytes")));
    }
    Ok(text)
}

fn part(mut file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(io::SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    file.take(length.min(MAX_DOCUMENT_BYTES))
        .read_to_end(&mut text)?;
    Ok(text)
}

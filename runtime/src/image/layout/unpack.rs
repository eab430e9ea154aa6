//! From an archive to a folder.

use std::fs::{self, File};
use std::io::{BufRead, BufWriter, Write};
use std::path::Path;

use super::LayoutError;
use crate::chain::chain;
use crate::image::digest::{Digest, Hasher};
use crate::image::tar::{Entry, EntryKind, Reader};

/// Unpacks an archive of a layout into `folder`, which is empty. Only what a layout has is taken,
/// so no name of the archive becomes a path; every blob has its digest. Blocking.
///
/// # Errors
/// [`LayoutError`]; the folder then holds something unfinished.
pub(crate) fn unpack(input: impl BufRead, folder: &Path) -> Result<(), LayoutError> {
    let malformed = |reason: String| LayoutError::Archive {
        path: folder.to_owned(),
        reason,
    };
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(LayoutError::write(&blobs))?;
    let mut tar = Reader::new(input);
    loop {
        let entry = tar.next_entry().map_err(|error| malformed(chain(&error)))?;
        let Some(entry) = entry else { return Ok(()) };
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let digest = name
            .strip_prefix("blobs/sha256/")
            .and_then(|name| Digest::from_hex(name).ok());
        let path = match digest {
            Some(digest) => blobs.join(digest.hex()),
            None if matches!(name.as_str(), "oci-layout" | "index.json") => folder.join(&name),
            None => return Err(malformed(format!("{name:?} is no part of a layout"))),
        };
        if entry.kind != EntryKind::File || entry.segments.is_some() {
            return Err(malformed(format!("{name:?} is no plain file")));
        }
        let received = copy(&mut tar, &entry, &path)?;
        if digest.is_some_and(|digest| digest != received) {
            return Err(malformed(format!("{name:?} has the digest {received}")));
        }
    }
}

fn copy(tar: &mut Reader<impl BufRead>, entry: &Entry, path: &Path) -> Result<Digest, LayoutError> {
    let file = File::create_new(path).map_err(LayoutError::write(path))?;
    let mut file = BufWriter::new(file);
    let mut hasher = Hasher::default();
    let mut left = entry.size;
    while left > 0 {
        let data = tar.data().map_err(|error| LayoutError::Archive {
            path: path.to_owned(),
            reason: chain(&error),
        })?;
        let length = data.len();
        hasher.update(data);
        file.write_all(data).map_err(LayoutError::write(path))?;
        tar.consume(length);
        left -= length as u64;
    }
    file.flush().map_err(LayoutError::write(path))?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tar::{END, file_header};

    #[test]
    fn an_archive_is_unpacked_only_if_it_is_a_layout_and_nothing_else() {
        for name in [
            "../evil",
            "/evil",
            "blobs/sha256/../../evil",
            "blobs/sha256/ab",
            "evil",
        ] {
            let folder = tempfile::TempDir::new().expect("a directory");
            let inner = folder.path().join("inner");
            let archive = [&file_header(name, 0)[..], &END].concat();
            let error = unpack(archive.as_slice(), &inner).expect_err(name);
            assert!(matches!(error, LayoutError::Archive { .. }), "{error}");
            let entries = fs::read_dir(folder.path()).expect("a folder");
            assert_eq!(entries.count(), 1, "{name}");
        }
        let folder = tempfile::TempDir::new().expect("a directory");
        let digest = Digest::of(b"x").hex();
        let header = file_header(&format!("blobs/sha256/{digest}"), 0);
        let error = unpack([&header[..], &END].concat().as_slice(), folder.path());
        let error = error.expect_err("not the digest of nothing");
        assert!(error.to_string().contains("digest"), "{error}");
    }
}

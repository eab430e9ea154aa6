//! A tree as a map from paths to everything that can be known about them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::image::digest::Digest;

/// Everything about one entry. `Debug` shows a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Seen {
    /// File type and permissions.
    pub(in crate::image) mode: String,
    /// Owner and group.
    pub(in crate::image) owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub(in crate::image) mtime: (i64, i64),
    /// Links; of a directory too.
    pub(in crate::image) links: u64,
    /// Length and digest, target, or device number.
    pub(in crate::image) contents: String,
    /// The first path in order that names the same inode, if it is another.
    pub(in crate::image) same_as: Option<PathBuf>,
    /// Extended attributes.
    pub(in crate::image) xattrs: BTreeMap<OsString, String>,
}

/// A tree, by path from its root.
pub(in crate::image) type Snapshot = BTreeMap<PathBuf, Seen>;

/// Walks the tree below `root`, the root included under the empty path.
pub(in crate::image) fn snapshot(root: &Path) -> Snapshot {
    let mut paths = vec![PathBuf::new()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        let full = root.join(&path);
        if fs::symlink_metadata(&full).expect("an entry").is_dir() {
            let entries = fs::read_dir(&full).expect("a directory");
            paths.extend(entries.map(|entry| path.join(entry.expect("an entry").file_name())));
        }
    }
    paths.sort();
    let mut inodes = HashMap::new();
    paths
        .into_iter()
        .map(|path| {
            let mut seen = look(&root.join(&path));
            let inode = fs::symlink_metadata(root.join(&path))
                .expect("an entry")
                .ino();
            seen.same_as = inodes.get(&inode).cloned();
            inodes.entry(inode).or_insert_with(|| path.clone());
            (path, seen)
        })
        .collect()
}

fn look(path: &Path) -> Seen {
    let metadata = fs::symlink_metadata(path).expect("an entry");
    let kind = metadata.file_type();
    let contents = if kind.is_file() {
        let data = fs::read(path).expect("a readable file");
        format!("{} {}", metadata.len(), Digest::of(&data))
    } else if kind.is_symlink() {
        let target = fs::read_link(path)
            .expect("a link")
            .into_os_string()
            .into_vec();
        target.escape_ascii().to_string()
    } else if kind.is_char_device() || kind.is_block_device() {
        format!("{:#x}", metadata.rdev())
    } else {
        String::new()
    };
    let names = xattr::list(path).expect("attributes").filter(|name| {
        // What the test machine's own security modules add.
        !name.as_bytes().starts_with(b"security.selinux")
    });
    let xattrs = names.map(|name| {
        let value = xattr::get(path, &name)
            .expect("an attribute")
            .unwrap_or_default();
        (name, value.escape_ascii().to_string())
    });
    Seen {
        mode: format!("{:o}", metadata.mode()),
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        links: if kind.is_dir() { 0 } else { metadata.nlink() },
        contents,
        same_as: None,
        xattrs: xattrs.collect(),
    }
}

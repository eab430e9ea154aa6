//! A root filesystem in the making: layers on top of one another, without their data.
//!
//! A [`Tree`] starts as an empty root directory. The records of each layer, lowest first, are applied
//! to it in the order of their archive, and what then hangs from the root is the image. The rules
//! are image-spec's ("Applying Changesets"), and where it is silent containerd's:
//!
//! - a directory on a directory changes its metadata and keeps its contents; anything else on
//!   anything replaces it, contents and all;
//! - missing parents are made (0755, owned by root, at the epoch: there is no clock in here);
//! - a symbolic link on the way to an entry is followed, inside the tree, whichever layer it came
//!   from; the last component never is;
//! - a hard link finds its target in what was applied so far, in whichever layer that was;
//! - whiteouts and opaque directories hide what lower layers have, never what their own layer has.
//!
//! There is no file system below this, so there is nothing that a hostile layer could reach.
//! What is replaced stays in memory until the tree is dropped; the total is bounded by
//! [`MAX_TREE_BYTES`] and [`MAX_ENTRIES`].
//!
//! One thread builds a tree and hands it to `erofs`.

mod apply;
mod xattr;

use std::collections::BTreeMap;

pub(crate) use self::xattr::{XattrSet, Xattrs};
use super::limits::{MAX_DEPTH, MAX_ENTRIES, MAX_SYMLINKS, MAX_TREE_BYTES};
use super::tar::Timestamp;

/// Why layers do not make a filesystem.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// An entry cannot go where it wants to.
    #[error("the entry {path:?} {reason}")]
    Entry {
        /// Its path.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// The image has more entries than any honest one.
    #[error("more than {MAX_ENTRIES} entries in all layers")]
    TooMany,
    /// The image's metadata does not fit the memory that a pull may take.
    #[error("more than {MAX_TREE_BYTES} bytes of names, links and attributes")]
    TooLarge,
}

/// Names an inode of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InodeId(u32);

impl InodeId {
    /// The root directory.
    pub(crate) const ROOT: Self = Self(0);

    /// For tables with a row per inode.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    /// What it names.
    pub(crate) inode: InodeId,
    /// The last layer that had an entry here or below.
    layer: u8,
}

/// A directory's contents, sorted as EROFS sorts them: by unsigned bytes.
pub(crate) type Children = BTreeMap<Box<[u8]>, Link>;

/// What an inode is.
#[derive(Debug)]
pub(crate) enum Kind {
    /// A directory.
    Directory(Children),
    /// A regular file.
    File {
        /// In bytes.
        size: u64,
        /// In which layer's data blob its data is.
        layer: u8,
        /// Where it starts there, in blocks.
        block: u32,
    },
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A character device.
    CharDevice(u32),
    /// A block device.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
}

/// A file of any kind, with one name or more.
#[derive(Debug)]
pub(crate) struct Inode {
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last modification.
    pub(crate) mtime: Timestamp,
    /// Extended attributes.
    pub(crate) xattrs: XattrSet,
    /// What it is.
    pub(crate) kind: Kind,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
    xattrs: Xattrs,
    /// Records applied so far.
    entries: u64,
    /// Estimate of the memory taken.
    bytes: u64,
    /// Where the last entry's parent was found, as neighbours tend to follow one another. Valid
    /// until a name goes away or another layer begins.
    last_parent: Option<(Box<[u8]>, InodeId)>,
    /// The layer being applied.
    layer: u8,
}

/// What is charged for an entry beside its name: the inode, its place in the directory, and the rows
/// that it takes in the tables of `erofs`.
const ENTRY_COST: u64 = 128;

impl Tree {
    /// An empty root directory.
    pub(crate) fn new() -> Self {
        Self {
            inodes: vec![Inode::implicit_directory()],
            xattrs: Xattrs::new(),
            entries: 0,
            bytes: 0,
            last_parent: None,
            layer: 0,
        }
    }

    /// The inode of this name.
    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// How many inodes there ever were: one more than the largest index.
    pub(crate) fn capacity(&self) -> usize {
        self.inodes.len()
    }

    /// The extended attributes of all inodes.
    pub(crate) fn xattrs(&self) -> &Xattrs {
        &self.xattrs
    }

    fn children(&self, id: InodeId) -> Option<&Children> {
        match &self.inode(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: InodeId) -> Option<&mut Children> {
        match &mut self.inodes[id.index()].kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn charge(&mut self, bytes: u64) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_TREE_BYTES {
            Err(TreeError::TooLarge)
        } else {
            Ok(())
        }
    }

    fn add(&mut self, inode: Inode) -> Result<InodeId, TreeError> {
        self.charge(ENTRY_COST)?;
        let id = u32::try_from(self.inodes.len()).map_err(|_too_many| TreeError::TooMany)?;
        self.inodes.push(inode);
        Ok(InodeId(id))
    }
}

impl Inode {
    /// What stands where an archive has entries in a directory but not the directory.
    fn implicit_directory() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            xattrs: XattrSet::NONE,
            kind: Kind::Directory(Children::new()),
        }
    }
}

/// An error about the entry at `path`.
fn refuse(path: &[u8], reason: &'static str) -> TreeError {
    TreeError::Entry {
        path: path.escape_ascii().to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests;

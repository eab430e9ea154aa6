//! A directory's contents: blocks of sorted entries.
//!
//! In every block the entries come first, 12 bytes each, then their names, without separators. A
//! name ends where the next begins; the last one at the block's end or at a NUL. `.` and `..` are
//! entries like others, and sorted like them.

use super::BLOCK;
use super::format::{DIRENT_BYTES, FileType, dirent};
use super::plan::Plan;
use crate::image::tree::{Children, InodeId, Kind, Tree};

/// One entry, before it has a place.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    name: &'a [u8],
    inode: InodeId,
    file_type: FileType,
}

/// A directory's contents, in order.
#[derive(Debug)]
pub(super) struct Directory<'a>(Vec<Entry<'a>>);

impl<'a> Directory<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        id: InodeId,
        parent: InodeId,
        children: &'a Children,
    ) -> Self {
        let mut entries = Vec::with_capacity(children.len() + 2);
        entries.push(Entry {
            name: b".",
            inode: id,
            file_type: FileType::Directory,
        });
        entries.push(Entry {
            name: b"..",
            inode: parent,
            file_type: FileType::Directory,
        });
        entries.extend(children.iter().map(|(name, link)| Entry {
            name,
            inode: link.inode,
            file_type: file_type(&tree.inode(link.inode).kind),
        }));
        // The children are sorted; only what comes before "." moves.
        entries.sort_by_key(|entry| entry.name);
        Self(entries)
    }

    /// The entries of each block.
    fn blocks(&self) -> impl Iterator<Item = &[Entry<'a>]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let mut used = 0;
            let fitting = rest.iter().take_while(|entry| {
                used += DIRENT_BYTES + entry.name.len();
                used as u64 <= BLOCK
            });
            let count = fitting.count();
            let (block, after) = rest.split_at(count);
            rest = after;
            (count > 0).then_some(block)
        })
    }

    /// `i_size`: all blocks but the last are whole.
    pub(super) fn size(&self) -> u64 {
        let (mut blocks, mut last) = (0, 0);
        for block in self.blocks() {
            blocks += 1;
            last = block
                .iter()
                .map(|entry| DIRENT_BYTES + entry.name.len())
                .sum::<usize>() as u64;
        }
        (blocks - 1) * BLOCK + last
    }

    /// The contents, one block after the other, each as long as it is used.
    pub(super) fn encode(&self, plan: &Plan) -> impl Iterator<Item = Vec<u8>> {
        self.blocks().map(|block| {
            let mut out = Vec::with_capacity(4096);
            let mut nameoff = block.len() * DIRENT_BYTES;
            for entry in block {
                let offset = u16::try_from(nameoff).expect("inside a block");
                out.extend(dirent(plan.nid(entry.inode), offset, entry.file_type));
                nameoff += entry.name.len();
            }
            for entry in block {
                out.extend(entry.name);
            }
            out
        })
    }
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory(_) => FileType::Directory,
        Kind::File { .. } => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharDevice(_) => FileType::CharDevice,
        Kind::BlockDevice(_) => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
    }
}

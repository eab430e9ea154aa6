//! Writes EROFS: the metadata of an image's disk, over data that lies elsewhere.
//!
//! The on-disk format is the kernel's (`fs/erofs/erofs_fs.h` and
//! `Documentation/filesystems/erofs.rst`, Linux 6.12); names in `format.rs` are the kernel's. Of what
//! it allows we use:
//!
//! ```text
//! byte 0      1024            1152                         next block      next block
//! | nothing | super block | device slots, 128 each | pad | inodes      | pad | directory and | shared |
//! |         | 128 bytes   | (one per data blob)    |     | with tails  |     | symlink blocks| xattrs |
//! ```
//!
//! - 4096-byte blocks. `meta_blkaddr` is 0, so an inode's `nid` is its byte position by 32.
//! - Regular files with data are chunk-based, with a single chunk as large as the file needs: the
//!   data lies in one piece, so one 8-byte index with a device and a block says it all. Holes are the
//!   data blob's.
//! - Devices are addressed flat: slot *i* says at which block of the one disk data blob *i* starts
//!   (`mapped_blkaddr`), and the kernel, mounting without `device=` options, adds that
//!   (`erofs_map_dev`). The same metadata works with one disk per blob too.
//! - Directories and symbolic links keep what does not fill a block behind their inode
//!   (`EROFS_INODE_FLAT_INLINE`), as it must not cross into another block; whole blocks follow after
//!   all inodes. Regular files never do: their data belongs to a layer, which many images share on
//!   disk and in the page cache, and metadata to one image. Small files would be there once for each.
//! - Inodes are compact (32 bytes) where they can be: ids and link count in 16 bits, size in 32, and
//!   a modification time that is the super block's `build_time`, for which the most frequent one is
//!   taken. Otherwise they are extended (64 bytes).
//! - An extended attribute that several inodes have is stored once, in the shared area.
//! - Nothing depends on a clock, a random number or an address: the same tree gives the same bytes.
//!
//! Inodes lie directory by directory, a directory's children together: that is how they are looked
//! up. Two passes over the tree: `plan.rs` decides where everything goes, `write.rs` writes it from
//! front to back.

mod directory;
mod format;
mod plan;
mod write;
mod xattr;

use std::fs::File;
use std::io;

pub(crate) use self::format::{MAGIC, SUPER_OFFSET};
use super::digest::{Digest, Hasher};
use super::tree::Tree;

/// Size of a block; `blkszbits` is its logarithm.
const BLOCK: u64 = 4096;

/// A layer as the writer sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    /// What it is: the tag of its device slot.
    pub(crate) diff_id: Digest,
    /// Length of its data blob, in blocks.
    pub(crate) blocks: u32,
}

/// A disk's composition: metadata first, then these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Composition {
    /// Length of the metadata, in blocks.
    pub(crate) metadata_blocks: u32,
    /// Which layers' data blobs follow, in order: those that the image has any data of.
    pub(crate) layers: Vec<usize>,
}

/// Why the metadata could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ErofsError {
    /// The disk would be larger than EROFS' 32-bit block numbers reach: 16 TiB.
    #[error("the image is larger than 16 TiB")]
    TooLarge,
    /// Writing failed.
    #[error("writing the image's metadata")]
    Io(#[from] io::Error),
}

/// Writes the metadata of `tree`, made of `layers`, to `file`, which is empty. Not yet durable.
///
/// # Errors
/// See [`ErofsError`].
pub(crate) fn write(tree: &Tree, layers: &[Layer], file: File) -> Result<Composition, ErofsError> {
    let plan = plan::Plan::new(tree, layers)?;
    write::write(tree, layers, &plan, uuid(layers), file)?;
    let metadata_blocks = plan.metadata_blocks;
    Ok(Composition {
        metadata_blocks,
        layers: plan.devices,
    })
}

/// The volume's UUID: a hash of what it is made of, in the form of RFC 9562's version 8.
fn uuid(layers: &[Layer]) -> [u8; 16] {
    let mut hasher = Hasher::default();
    hasher.update(b"isopod erofs 1\n");
    for layer in layers {
        hasher.update(layer.diff_id.to_string().as_bytes());
        hasher.update(b"\n");
    }
    let digest = hasher.finish();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

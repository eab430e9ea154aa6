//! Writes what was planned, from front to back.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use super::directory::Directory;
use super::format::{
    CHUNK_INDEX_BYTES, DataLayout, DeviceSlot, DiskInode, INODE_SLOT_BYTES, SUPER_OFFSET,
    SuperBlock, checksum, chunk_format, chunk_index,
};
use super::plan::Plan;
use super::{BLOCK, Layer};
use crate::image::tree::{InodeId, Kind, Tree};

const S_IFIFO: u16 = 0o010_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFBLK: u16 = 0o060_000;
const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;

/// A file that knows how long it is.
struct Output {
    file: BufWriter<File>,
    position: u64,
}

impl Output {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.position += data.len() as u64;
        self.file.write_all(data)
    }

    /// Zeros up to `position`, less than a block away.
    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let length = usize::try_from(position - self.position).map_err(io::Error::other)?;
        self.write(
            ZEROS
                .get(..length)
                .expect("the plan leaves gaps of less than a block"),
        )
    }
}

pub(super) fn write(
    tree: &Tree,
    layers: &[Layer],
    plan: &Plan,
    uuid: [u8; 16],
    file: File,
) -> io::Result<()> {
    let mut out = Output {
        file: BufWriter::with_capacity(256 << 10, file),
        position: 0,
    };
    out.write(&header(layers, plan, uuid))?;
    for (ino, &id) in (1..).zip(&plan.order) {
        write_inode(tree, plan, id, ino, &mut out)?;
    }
    out.pad_to(u64::from(plan.contents_block) * BLOCK)?;
    for &id in &plan.order {
        write_contents(tree, plan, id, &mut out)?;
    }
    for entry in plan.shared.entries(tree.xattrs()) {
        out.write(&entry)?;
    }
    out.pad_to(u64::from(plan.metadata_blocks) * BLOCK)?;
    out.file.flush()
}

/// Everything before the inodes.
fn header(layers: &[Layer], plan: &Plan, uuid: [u8; 16]) -> Vec<u8> {
    let super_block = SuperBlock {
        root_nid: u16::try_from(plan.nid(InodeId::ROOT)).expect("the root is the first inode"),
        inos: plan.order.len() as u64,
        build_time: plan.build_time.seconds,
        build_time_nsec: plan.build_time.nanoseconds,
        blocks: plan.metadata_blocks,
        xattr_blkaddr: plan.xattr_block,
        uuid,
        extra_devices: u16::try_from(plan.devices.len()).expect("MAX_LAYERS fits"),
    };
    let super_at = usize::try_from(SUPER_OFFSET).expect("a small constant");
    let mut out = vec![0; super_at];
    out.extend(super_block.encode());
    for (&layer, &mapped_blkaddr) in plan.devices.iter().zip(&plan.mapped_blkaddr) {
        let Layer { diff_id, blocks } = layers[layer];
        out.extend(
            DeviceSlot {
                tag: diff_id.hex(),
                blocks,
                mapped_blkaddr,
            }
            .encode(),
        );
    }
    let length = Plan::inodes_start(plan.devices.len());
    out.resize(usize::try_from(length).expect("a few blocks"), 0);
    let first_block = usize::try_from(BLOCK).expect("a small constant");
    let sum = checksum(&out[super_at..first_block]);
    out[super_at..][SuperBlock::CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    out
}

fn write_inode(
    tree: &Tree,
    plan: &Plan,
    id: InodeId,
    i_ino: u32,
    out: &mut Output,
) -> io::Result<()> {
    let inode = tree.inode(id);
    let row = plan.row(id);
    let (file_type, i_u) = match inode.kind {
        Kind::Directory(_) => (S_IFDIR, row.raw_blkaddr),
        Kind::Symlink(_) => (S_IFLNK, row.raw_blkaddr),
        Kind::File { size: 0, .. } => (S_IFREG, 0),
        Kind::File { size, .. } => (S_IFREG, chunk_format(chunk_bits(size))),
        Kind::CharDevice(rdev) => (S_IFCHR, rdev),
        Kind::BlockDevice(rdev) => (S_IFBLK, rdev),
        Kind::Fifo => (S_IFIFO, 0),
    };
    let xattrs = plan.shared.inline(tree.xattrs(), inode.xattrs);
    // The header counts as one, whatever its size.
    let i_xattr_icount = match xattrs.len() {
        0 => 0,
        length => (length - 12) / 4 + 1,
    };
    let disk_inode = DiskInode {
        extended: row.extended,
        layout: row.layout,
        i_xattr_icount: u16::try_from(i_xattr_icount).expect("bounded by MAX_XATTR_BYTES"),
        i_mode: file_type | inode.mode,
        i_nlink: row.nlink,
        i_size: plan.size(tree, id),
        i_u,
        i_ino,
        i_uid: inode.uid,
        i_gid: inode.gid,
        i_mtime: inode.mtime.seconds,
        i_mtime_nsec: inode.mtime.nanoseconds,
    };
    out.pad_to(u64::from(row.nid) * INODE_SLOT_BYTES)?;
    out.write(&disk_inode.encode())?;
    out.write(&xattrs)?;
    match row.layout {
        DataLayout::FlatInline => out.write(&contents(tree, plan, id).last().unwrap_or_default()),
        DataLayout::ChunkBased => {
            let Kind::File { layer, block, .. } = inode.kind else {
                unreachable!("only files are chunk-based")
            };
            out.pad_to(out.position.next_multiple_of(CHUNK_INDEX_BYTES))?;
            out.write(&chunk_index(plan.device_id(layer), block))
        }
        DataLayout::FlatPlain => Ok(()),
    }
}

/// The whole blocks of a directory or a long symbolic link.
fn write_contents(tree: &Tree, plan: &Plan, id: InodeId, out: &mut Output) -> io::Result<()> {
    let row = plan.row(id);
    if !matches!(tree.inode(id).kind, Kind::Directory(_) | Kind::Symlink(_)) {
        return Ok(());
    }
    let mut blocks = contents(tree, plan, id).peekable();
    while let Some(block) = blocks.next() {
        if row.layout == DataLayout::FlatInline && blocks.peek().is_none() {
            break;
        }
        out.write(&block)?;
        out.pad_to(out.position.next_multiple_of(BLOCK))?;
    }
    Ok(())
}

/// What a directory or a symbolic link consists of, block by block.
fn contents(tree: &Tree, plan: &Plan, id: InodeId) -> std::vec::IntoIter<Vec<u8>> {
    let blocks = match &tree.inode(id).kind {
        Kind::Directory(children) => Directory::new(tree, id, plan.row(id).parent, children)
            .encode(plan)
            .collect(),
        Kind::Symlink(target) => vec![target.to_vec()],
        _ => Vec::new(),
    };
    blocks.into_iter()
}

/// The logarithm of the number of blocks in a chunk that holds all of a file. The layer's limit
/// keeps it below the format's 31.
fn chunk_bits(size: u64) -> u32 {
    size.div_ceil(BLOCK).next_power_of_two().trailing_zeros()
}

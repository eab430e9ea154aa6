//! Where everything goes.

use std::collections::BTreeMap;

use super::directory::Directory;
use super::format::{
    CHUNK_INDEX_BYTES, COMPACT_BYTES, DEVICE_SLOT_BYTES, DataLayout, EXTENDED_BYTES,
    INODE_SLOT_BYTES, SUPER_BYTES, SUPER_OFFSET,
};
use super::xattr::SharedXattrs;
use super::{BLOCK, ErofsError, Layer};
use crate::image::tar::Timestamp;
use crate::image::tree::{Inode, InodeId, Kind, Tree};

/// What is known of an inode before it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Where it is, in units of [`INODE_SLOT_BYTES`]. 0 until it is placed.
    pub(super) nid: u32,
    /// Names; for a directory also its own `.` and its subdirectories' `..`.
    pub(super) nlink: u32,
    /// For a directory: where its `..` leads.
    pub(super) parent: InodeId,
    /// First of its whole blocks.
    pub(super) raw_blkaddr: u32,
    /// Whether it needs the long form.
    pub(super) extended: bool,
    /// Where its contents are.
    pub(super) layout: DataLayout,
}

/// The whole disk, but for its contents.
#[derive(Debug)]
pub(super) struct Plan {
    /// The inodes in the order of their places.
    pub(super) order: Vec<InodeId>,
    rows: Vec<Row>,
    /// Modification time of the compact inodes.
    pub(super) build_time: Timestamp,
    /// The shared extended attributes.
    pub(super) shared: SharedXattrs,
    /// First block behind the inodes.
    pub(super) contents_block: u32,
    /// First block of the shared attributes.
    pub(super) xattr_block: u32,
    /// Length of all metadata.
    pub(super) metadata_blocks: u32,
    /// Layers with data in the image, in the order of their device slots.
    pub(super) devices: Vec<usize>,
    /// The device slot of each layer, counted from 1.
    device_ids: Vec<u16>,
    /// Where each device starts on the one disk.
    pub(super) mapped_blkaddr: Vec<u32>,
}

impl Plan {
    pub(super) fn new(tree: &Tree, layers: &[Layer]) -> Result<Self, ErofsError> {
        let mut survey = Survey::new(tree, layers.len());
        survey.walk(tree);
        let build_time = survey.most_frequent_time();
        let devices: Vec<usize> = (0..layers.len())
            .filter(|&layer| survey.has_data[layer])
            .collect();
        let mut device_ids = vec![0; layers.len()];
        for (id, &layer) in (1..).zip(&devices) {
            device_ids[layer] = id;
        }
        let shared = SharedXattrs::new(tree.xattrs(), &survey.xattr_uses);
        let mut plan = Self {
            order: survey.order,
            rows: survey.rows,
            build_time,
            shared,
            contents_block: 0,
            xattr_block: 0,
            metadata_blocks: 0,
            devices,
            device_ids,
            mapped_blkaddr: Vec::new(),
        };
        plan.place(tree)?;
        plan.map_devices(layers)?;
        Ok(plan)
    }

    pub(super) fn row(&self, id: InodeId) -> &Row {
        &self.rows[id.index()]
    }

    pub(super) fn nid(&self, id: InodeId) -> u64 {
        self.row(id).nid.into()
    }

    /// The device slot with this layer's data.
    pub(super) fn device_id(&self, layer: u8) -> u16 {
        self.device_ids[usize::from(layer)]
    }

    /// Where the inodes begin: a whole block after the device slots, so that the super block's
    /// checksum is over things known early.
    pub(super) fn inodes_start(devices: usize) -> u64 {
        let slots = SUPER_OFFSET + SUPER_BYTES + devices as u64 * DEVICE_SLOT_BYTES;
        slots.next_multiple_of(BLOCK)
    }

    fn place(&mut self, tree: &Tree) -> Result<(), ErofsError> {
        let mut position = Self::inodes_start(self.devices.len());
        let mut content_blocks = 0_u64;
        // First in blocks after the inodes' end, which is known later.
        for at in 0..self.order.len() {
            let id = self.order[at];
            let inode = tree.inode(id);
            let size = self.size(tree, id);
            let row = &mut self.rows[id.index()];
            row.extended = !fits_compact(inode, size, row.nlink, self.build_time);
            let inode_bytes = if row.extended {
                EXTENDED_BYTES
            } else {
                COMPACT_BYTES
            };
            let fixed = inode_bytes + self.shared.inline_bytes(tree.xattrs(), inode.xattrs);
            let (tail, together) = match inode.kind {
                Kind::Directory(_) | Kind::Symlink(_) => {
                    let tail = size % BLOCK;
                    let inline = tail > 0 && fixed + tail <= BLOCK;
                    row.layout = if inline {
                        DataLayout::FlatInline
                    } else {
                        DataLayout::FlatPlain
                    };
                    row.raw_blkaddr =
                        u32::try_from(content_blocks).map_err(|_too_large| ErofsError::TooLarge)?;
                    content_blocks += if inline {
                        size / BLOCK
                    } else {
                        size.div_ceil(BLOCK)
                    };
                    if inline {
                        (tail, fixed + tail)
                    } else {
                        (0, inode_bytes)
                    }
                }
                Kind::File { .. } if size > 0 => {
                    row.layout = DataLayout::ChunkBased;
                    let aligned = fixed.next_multiple_of(CHUNK_INDEX_BYTES);
                    (aligned - fixed + CHUNK_INDEX_BYTES, inode_bytes)
                }
                _ => (0, inode_bytes),
            };
            // What must not cross into another block does not.
            if position % BLOCK + together > BLOCK {
                position = position.next_multiple_of(BLOCK);
            }
            row.nid = u32::try_from(position / INODE_SLOT_BYTES)
                .map_err(|_too_large| ErofsError::TooLarge)?;
            position = (position + fixed + tail).next_multiple_of(INODE_SLOT_BYTES);
        }
        let contents = position.div_ceil(BLOCK);
        let xattrs = contents + content_blocks;
        let end = xattrs + self.shared.bytes.div_ceil(BLOCK);
        let block = |block| u32::try_from(block).map_err(|_too_large| ErofsError::TooLarge);
        self.contents_block = block(contents)?;
        self.xattr_block = block(xattrs)?;
        self.metadata_blocks = block(end)?;
        for &id in &self.order {
            if matches!(tree.inode(id).kind, Kind::Directory(_) | Kind::Symlink(_)) {
                self.rows[id.index()].raw_blkaddr += self.contents_block;
            }
        }
        Ok(())
    }

    fn map_devices(&mut self, layers: &[Layer]) -> Result<(), ErofsError> {
        let mut end = self.metadata_blocks;
        for &layer in &self.devices {
            self.mapped_blkaddr.push(end);
            end = end
                .checked_add(layers[layer].blocks)
                .ok_or(ErofsError::TooLarge)?;
        }
        Ok(())
    }

    /// `i_size`.
    pub(super) fn size(&self, tree: &Tree, id: InodeId) -> u64 {
        match &tree.inode(id).kind {
            Kind::Directory(children) => {
                Directory::new(tree, id, self.row(id).parent, children).size()
            }
            Kind::File { size, .. } => *size,
            Kind::Symlink(target) => target.len() as u64,
            Kind::CharDevice(_) | Kind::BlockDevice(_) | Kind::Fifo => 0,
        }
    }
}

fn fits_compact(inode: &Inode, size: u64, nlink: u32, build_time: Timestamp) -> bool {
    inode.mtime == build_time
        && inode.uid <= u16::MAX.into()
        && inode.gid <= u16::MAX.into()
        && nlink <= u16::MAX.into()
        && size <= u32::MAX.into()
}

/// A first walk over the tree.
struct Survey {
    order: Vec<InodeId>,
    rows: Vec<Row>,
    xattr_uses: Vec<u32>,
    has_data: Vec<bool>,
    times: BTreeMap<Timestamp, u32>,
}

impl Survey {
    fn new(tree: &Tree, layers: usize) -> Self {
        let row = Row {
            nid: 0,
            nlink: 0,
            parent: InodeId::ROOT,
            raw_blkaddr: 0,
            extended: false,
            layout: DataLayout::FlatPlain,
        };
        Self {
            order: Vec::new(),
            rows: vec![row; tree.capacity()],
            xattr_uses: vec![0; tree.xattrs().len()],
            has_data: vec![false; layers],
            times: BTreeMap::new(),
        }
    }

    /// Directory by directory, depth first, each one's children together.
    fn walk(&mut self, tree: &Tree) {
        self.visit(tree, InodeId::ROOT);
        let mut pending = vec![InodeId::ROOT];
        while let Some(directory) = pending.pop() {
            let Kind::Directory(children) = &tree.inode(directory).kind else {
                continue;
            };
            let first = pending.len();
            // Its `.` and its name; the root has no name, but a `..` of its own.
            self.rows[directory.index()].nlink += 2;
            for link in children.values() {
                let child = link.inode;
                if matches!(tree.inode(child).kind, Kind::Directory(_)) {
                    self.rows[child.index()].parent = directory;
                    self.rows[directory.index()].nlink += 1;
                    pending.push(child);
                    self.visit(tree, child);
                } else {
                    self.rows[child.index()].nlink += 1;
                    if self.rows[child.index()].nlink == 1 {
                        self.visit(tree, child);
                    }
                }
            }
            pending[first..].reverse();
        }
    }

    fn visit(&mut self, tree: &Tree, id: InodeId) {
        let inode = tree.inode(id);
        self.order.push(id);
        *self.times.entry(inode.mtime).or_default() += 1;
        for attribute in tree.xattrs().set(inode.xattrs) {
            self.xattr_uses[attribute] += 1;
        }
        if let Kind::File {
            size: 1.., layer, ..
        } = inode.kind
        {
            self.has_data[usize::from(layer)] = true;
        }
    }

    /// The earliest of them if there are several.
    fn most_frequent_time(&self) -> Timestamp {
        let rank = |(time, count): (&Timestamp, &u32)| (*count, std::cmp::Reverse(*time));
        self.times
            .iter()
            .map(rank)
            .max()
            .map_or_else(Timestamp::default, |(_, time)| time.0)
    }
}

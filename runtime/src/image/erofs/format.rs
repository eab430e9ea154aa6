//! The on-disk structures that we write, field by field, with the kernel's names. Everything is
//! little-endian.

/// `EROFS_SUPER_OFFSET`: where the super block is.
pub(crate) const SUPER_OFFSET: u64 = 1024;
/// Size of `struct erofs_super_block`, without extension slots.
pub(super) const SUPER_BYTES: u64 = 128;
/// `EROFS_DEVT_SLOT_SIZE`: size of `struct erofs_deviceslot`.
pub(super) const DEVICE_SLOT_BYTES: u64 = 128;
/// Inodes lie at multiples of this, and `nid` counts in it.
pub(super) const INODE_SLOT_BYTES: u64 = 32;
/// Size of `struct erofs_inode_compact`.
pub(super) const COMPACT_BYTES: u64 = 32;
/// Size of `struct erofs_inode_extended`.
pub(super) const EXTENDED_BYTES: u64 = 64;
/// Size of `struct erofs_xattr_ibody_header`.
pub(super) const XATTR_HEADER_BYTES: u64 = 12;
/// Size of `struct erofs_inode_chunk_index`.
pub(super) const CHUNK_INDEX_BYTES: u64 = 8;
/// Size of `struct erofs_dirent`.
pub(super) const DIRENT_BYTES: usize = 12;

/// `EROFS_SUPER_MAGIC_V1`.
pub(crate) const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: `checksum` is valid.
const COMPAT_SB_CHKSUM: u32 = 0x1;
/// `EROFS_FEATURE_COMPAT_MTIME`: times are modification times.
const COMPAT_MTIME: u32 = 0x2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`.
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// `EROFS_FEATURE_INCOMPAT_DEVICE_TABLE`.
const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// `struct erofs_super_block`, as far as it is not constant here.
#[derive(Debug)]
pub(super) struct SuperBlock {
    /// Where the root directory's inode is; 16 bits wide, so it comes first.
    pub(super) root_nid: u16,
    /// Number of inodes.
    pub(super) inos: u64,
    /// Modification time of compact inodes, seconds since the epoch.
    pub(super) build_time: i64,
    /// And nanoseconds.
    pub(super) build_time_nsec: u32,
    /// Length of the primary device, here the metadata, in blocks.
    pub(super) blocks: u32,
    /// First block of the shared extended attributes.
    pub(super) xattr_blkaddr: u32,
    /// The volume's id.
    pub(super) uuid: [u8; 16],
    /// Number of device slots.
    pub(super) extra_devices: u16,
}

impl SuperBlock {
    /// With a `checksum` of 0: [`checksum`] is taken over it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut incompat = INCOMPAT_CHUNKED_FILE;
        let mut devt_slotoff = 0_u16;
        if self.extra_devices > 0 {
            incompat |= INCOMPAT_DEVICE_TABLE;
            // In slots, from the beginning of the disk: right behind the super block.
            devt_slotoff = 9;
        }
        let mut out = Vec::with_capacity(128);
        out.extend(MAGIC.to_le_bytes());
        out.extend(0_u32.to_le_bytes()); // checksum
        out.extend((COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes()); // feature_compat
        out.push(12); // blkszbits: 4096-byte blocks
        out.push(0); // sb_extslots
        out.extend(self.root_nid.to_le_bytes());
        out.extend(self.inos.to_le_bytes());
        out.extend(self.build_time.to_le_bytes());
        out.extend(self.build_time_nsec.to_le_bytes());
        out.extend(self.blocks.to_le_bytes());
        out.extend(0_u32.to_le_bytes()); // meta_blkaddr
        out.extend(self.xattr_blkaddr.to_le_bytes());
        out.extend(self.uuid);
        out.extend(b"isopod\0\0\0\0\0\0\0\0\0\0"); // volume_name
        out.extend(incompat.to_le_bytes()); // feature_incompat
        out.extend(0_u16.to_le_bytes()); // u1.available_compr_algs
        out.extend(self.extra_devices.to_le_bytes());
        out.extend(devt_slotoff.to_le_bytes());
        out.push(0); // dirblkbits: directory blocks are blocks
        out.push(0); // xattr_prefix_count
        out.extend(0_u32.to_le_bytes()); // xattr_prefix_start
        out.extend(0_u64.to_le_bytes()); // packed_nid
        out.push(0); // xattr_filter_reserved
        out.extend([0; 23]); // reserved2
        out
    }

    /// Where `checksum` is in the super block.
    pub(super) const CHECKSUM: std::ops::Range<usize> = 4..8;
}

/// The super block's checksum: CRC-32C without the final inversion, from the super block to the end
/// of its block (`erofs_superblock_csum_verify`).
pub(super) fn checksum(rest_of_block: &[u8]) -> u32 {
    !crc32c::crc32c(rest_of_block)
}

/// `struct erofs_deviceslot`.
#[derive(Debug)]
pub(super) struct DeviceSlot {
    /// What the device holds: the 64 digits of a SHA-256 digest.
    pub(super) tag: String,
    /// Its length.
    pub(super) blocks: u32,
    /// Where it starts when all devices lie on one disk.
    pub(super) mapped_blkaddr: u32,
}

impl DeviceSlot {
    pub(super) fn encode(&self) -> [u8; 128] {
        let mut out = [0; 128];
        let length = self.tag.len().min(64);
        out[..length].copy_from_slice(&self.tag.as_bytes()[..length]);
        out[64..68].copy_from_slice(&self.blocks.to_le_bytes());
        out[68..72].copy_from_slice(&self.mapped_blkaddr.to_le_bytes());
        out
    }
}

/// Where an inode's contents are; bits 1 to 3 of `i_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// `EROFS_INODE_FLAT_PLAIN`: whole blocks, or nothing.
    FlatPlain = 0,
    /// `EROFS_INODE_FLAT_INLINE`: whole blocks, and the rest behind the inode.
    FlatInline = 2,
    /// `EROFS_INODE_CHUNK_BASED`: wherever the chunk indexes behind the inode say.
    ChunkBased = 4,
}

/// `struct erofs_inode_compact` or `struct erofs_inode_extended`.
#[derive(Debug)]
pub(super) struct DiskInode {
    /// Which of the two; bit 0 of `i_format`.
    pub(super) extended: bool,
    /// The rest of `i_format`.
    pub(super) layout: DataLayout,
    /// Extended attributes behind the inode: 0 for none, else 1 for their header and 1 for every 4
    /// bytes after it.
    pub(super) i_xattr_icount: u16,
    /// File type and permissions.
    pub(super) i_mode: u16,
    /// Links.
    pub(super) i_nlink: u32,
    /// In bytes.
    pub(super) i_size: u64,
    /// `raw_blkaddr`, `rdev`, or the chunk format.
    pub(super) i_u: u32,
    /// A number for 32-bit `stat`, which nothing else uses.
    pub(super) i_ino: u32,
    /// Owner.
    pub(super) i_uid: u32,
    /// Group.
    pub(super) i_gid: u32,
    /// Seconds since the epoch; a compact inode has the super block's.
    pub(super) i_mtime: i64,
    /// And nanoseconds.
    pub(super) i_mtime_nsec: u32,
}

impl DiskInode {
    pub(super) fn encode(&self) -> Vec<u8> {
        let i_format = (self.layout as u16) << 1 | u16::from(self.extended);
        let mut out = Vec::with_capacity(64);
        out.extend(i_format.to_le_bytes());
        out.extend(self.i_xattr_icount.to_le_bytes());
        out.extend(self.i_mode.to_le_bytes());
        if self.extended {
            out.extend(0_u16.to_le_bytes()); // i_reserved
            out.extend(self.i_size.to_le_bytes());
            out.extend(self.i_u.to_le_bytes());
            out.extend(self.i_ino.to_le_bytes());
            out.extend(self.i_uid.to_le_bytes());
            out.extend(self.i_gid.to_le_bytes());
            out.extend(self.i_mtime.to_le_bytes());
            out.extend(self.i_mtime_nsec.to_le_bytes());
            out.extend(self.i_nlink.to_le_bytes());
            out.extend([0; 16]); // i_reserved2
        } else {
            // What does not fit makes the plan choose the extended form.
            out.extend(&self.i_nlink.to_le_bytes()[..2]);
            out.extend(&self.i_size.to_le_bytes()[..4]);
            out.extend(0_u32.to_le_bytes()); // i_reserved
            out.extend(self.i_u.to_le_bytes());
            out.extend(self.i_ino.to_le_bytes());
            out.extend(&self.i_uid.to_le_bytes()[..2]);
            out.extend(&self.i_gid.to_le_bytes()[..2]);
            out.extend(0_u32.to_le_bytes()); // i_reserved2
        }
        out
    }
}

/// `struct erofs_inode_chunk_info.format` with `EROFS_CHUNK_FORMAT_INDEXES`: chunks of
/// 2^`block_bits` blocks, each with an index behind the inode.
pub(super) fn chunk_format(block_bits: u32) -> u32 {
    0x20 | block_bits
}

/// `struct erofs_inode_chunk_index`: the device, counted from 1, and the block in it.
pub(super) fn chunk_index(device_id: u16, blkaddr: u32) -> [u8; 8] {
    let mut out = [0; 8]; // advise
    out[2..4].copy_from_slice(&device_id.to_le_bytes());
    out[4..].copy_from_slice(&blkaddr.to_le_bytes());
    out
}

/// `struct erofs_dirent.file_type`: the generic `FT_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Symlink = 7,
}

/// `struct erofs_dirent`: a name is `nameoff` bytes into its block.
pub(super) fn dirent(nid: u64, nameoff: u16, file_type: FileType) -> [u8; DIRENT_BYTES] {
    let mut out = [0; DIRENT_BYTES];
    out[..8].copy_from_slice(&nid.to_le_bytes());
    out[8..10].copy_from_slice(&nameoff.to_le_bytes());
    out[10] = file_type as u8;
    out
}

/// `struct erofs_xattr_ibody_header`, for so many shared attributes. The name filter is not used
/// (`EROFS_FEATURE_COMPAT_XATTR_FILTER` is off).
pub(super) fn xattr_header(shared: u8) -> [u8; 12] {
    let mut out = [0; 12];
    out[4] = shared;
    out
}

/// `struct erofs_xattr_entry` with name and value, padded to 4 bytes.
pub(super) fn xattr_entry(index: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + name.len() + value.len() + 3);
    out.push(u8::try_from(name.len()).expect("names are bounded by MAX_NAME_BYTES"));
    out.push(index);
    let size = u16::try_from(value.len()).expect("values are bounded by MAX_XATTR_BYTES");
    out.extend(size.to_le_bytes());
    out.extend(name);
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

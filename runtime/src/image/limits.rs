//! What an image may claim at most. A registry is not trusted to be reasonable.

/// A manifest, an index or a configuration, in bytes. containerd's limit for manifests is the same.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

/// Layers of an image: what overlayfs and so every builder allows.
pub(crate) const MAX_LAYERS: usize = 127;

/// Entries of all layers of an image, whiteouts included.
pub(crate) const MAX_ENTRIES: u64 = 1 << 21;

/// A layer's index file, in bytes.
pub(crate) const MAX_INDEX_BYTES: u64 = 1 << 30;

/// Memory for names, link targets and attributes while an image's layers are merged, in bytes.
pub(crate) const MAX_TREE_BYTES: u64 = 384 << 20;

/// A path in a layer, in bytes: Linux' `PATH_MAX`, less its NUL.
pub(crate) const MAX_PATH_BYTES: usize = 4095;

/// A component of a path, in bytes: Linux' `NAME_MAX` and EROFS' `EROFS_NAME_LEN`.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// Directories inside one another.
pub(crate) const MAX_DEPTH: usize = 1024;

/// Symbolic links followed on the way to one entry: Linux' `MAXSYMLINKS`.
pub(crate) const MAX_SYMLINKS: usize = 40;

/// Extended attributes of one file. EROFS counts shared ones in a byte.
pub(crate) const MAX_XATTRS: usize = 128;

/// Names and values of one file's extended attributes, in bytes: Linux' `XATTR_LIST_MAX`, and small
/// enough for `i_xattr_icount`.
pub(crate) const MAX_XATTR_BYTES: usize = 64 << 10;

/// Size of a block, in every file of the store.
pub(crate) const BLOCK_BYTES: u64 = 4096;

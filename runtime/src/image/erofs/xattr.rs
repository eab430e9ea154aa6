//! Extended attributes: which are shared, where, and what stands behind an inode.

use super::format::{XATTR_HEADER_BYTES, xattr_entry, xattr_header};
use crate::image::tree::{XattrSet, Xattrs};

/// `EROFS_XATTR_INDEX_*`: the namespaces, which stand as a number before the rest of the name.
const NAMESPACES: [(&[u8], u8); 4] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"security.", 6),
];

/// Where every shared attribute is.
#[derive(Debug)]
pub(super) struct SharedXattrs {
    /// For every attribute of the tree: its place in the shared area, in units of 4 bytes, if it is
    /// there.
    ids: Vec<Option<u32>>,
    /// Length of the shared area, in bytes.
    pub(super) bytes: u64,
}

impl SharedXattrs {
    /// `uses` says how many inodes have each attribute. What at least two have is shared.
    pub(super) fn new(xattrs: &Xattrs, uses: &[u32]) -> Self {
        let mut bytes = 0;
        let ids = uses.iter().enumerate().map(|(index, &uses)| {
            if uses < 2 {
                return None;
            }
            let id = u32::try_from(bytes / 4).expect("bounded by MAX_TREE_BYTES");
            bytes += encode(xattrs, index).len() as u64;
            Some(id)
        });
        let ids = ids.collect();
        Self { ids, bytes }
    }

    /// The shared area.
    pub(super) fn entries(&self, xattrs: &Xattrs) -> impl Iterator<Item = Vec<u8>> {
        let shared = self.ids.iter().enumerate().filter(|(_, id)| id.is_some());
        shared.map(|(index, _)| encode(xattrs, index))
    }

    /// What stands behind an inode with this set, in bytes: `erofs_xattr_ibody_size`.
    pub(super) fn inline_bytes(&self, xattrs: &Xattrs, set: XattrSet) -> u64 {
        if set == XattrSet::NONE {
            return 0;
        }
        let entries = xattrs.set(set).map(|index| match self.ids[index] {
            Some(_) => 4,
            None => encode(xattrs, index).len() as u64,
        });
        XATTR_HEADER_BYTES + entries.sum::<u64>()
    }

    /// And itself: a header, the shared ones' places, then the others.
    pub(super) fn inline(&self, xattrs: &Xattrs, set: XattrSet) -> Vec<u8> {
        if set == XattrSet::NONE {
            return Vec::new();
        }
        let shared: Vec<u32> = xattrs
            .set(set)
            .filter_map(|index| self.ids[index])
            .collect();
        let count = u8::try_from(shared.len()).expect("MAX_XATTRS fits a byte");
        let mut out = xattr_header(count).to_vec();
        for id in shared {
            out.extend(id.to_le_bytes());
        }
        for index in xattrs.set(set).filter(|&index| self.ids[index].is_none()) {
            out.extend(encode(xattrs, index));
        }
        out
    }
}

fn encode(xattrs: &Xattrs, index: usize) -> Vec<u8> {
    let (name, value) = xattrs.get(index);
    let (namespace, rest) = NAMESPACES
        .iter()
        .find_map(|&(prefix, namespace)| Some((namespace, name.strip_prefix(prefix)?)))
        .expect("other namespaces are left out when a layer is taken in");
    xattr_entry(namespace, rest, value)
}

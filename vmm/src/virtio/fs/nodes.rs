//! The files that the guest knows, and the volumes through which it came to know them.
//!
//! A node is a file of the host, held by an `O_PATH` descriptor. The guest names it by a number and
//! counts how often it was told that number (FUSE's lookup count); it forgets nodes as soon as it
//! does not use them, because nothing that it is told may be cached.
//!
//! The same file is the same node whichever volume leads to it, so that containers which share a
//! folder share its pages and its locks. A directory is only if it is reached through the same
//! mount of the host, since what is mounted in it depends on that; and so is a file of a volume whose
//! root the host's kernel does not let anybody write to. A node may be written if any of the volumes
//! that led to it may.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, StatVfsMountFlags, Statx, StatxFlags, fstatvfs, statx};
use rustix::io::Errno;

use super::wire::ROOT_ID;

/// Most nodes that a guest knows at a time. It keeps those that it has open or mounted, or walks
/// through.
const NODES_MAX: usize = 1 << 16;

/// Most volumes of a sandbox.
const VOLUMES_MAX: usize = 4096;

/// Most file systems of the host that get inode numbers of their own.
const DEVICES_MAX: usize = 1 << 15;

/// Inode numbers below this are told apart by their file system.
const INODE_BITS: u32 = 48;

/// Why a volume cannot be added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// Not 1 to 64 characters of `[A-Za-z0-9._-]`, or made of dots.
    #[error("not a name for a volume: {0:?}")]
    Name(String),
    /// [`VOLUMES_MAX`] are there.
    #[error("a sandbox has at most {VOLUMES_MAX} volumes")]
    Full,
    /// Neither a directory nor a regular file.
    #[error("volume {0} is neither a directory nor a regular file")]
    Kind(String),
    /// It cannot be examined.
    #[error("volume {name} cannot be used")]
    File {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// What makes two descriptors the same file. Mount is 0 for what is no directory, unless it lies apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: (u32, u32),
    inode: u64,
    mount: u64,
}

/// A file that the guest knows.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) kind: FileType,
    fd: OwnedFd,
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    identity: Identity,
    /// How often the guest was told its number; a volume's root has one more.
    lookups: u64,
    volumes: Vec<u64>,
    /// It is what it is through its mount alone: another way to the same file may let the guest do
    /// more with it, or less.
    apart: bool,
}

#[derive(Debug)]
struct Volume {
    id: u64,
    root: u64,
    writable: bool,
}

/// The tables.
#[derive(Debug)]
pub(super) struct Nodes {
    by_id: HashMap<u64, Known>,
    by_identity: HashMap<Identity, u64>,
    volumes: BTreeMap<String, Volume>,
    /// File systems by the order in which the guest came to know them.
    devices: HashMap<(u32, u32), u64>,
    next_id: u64,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            by_id: HashMap::new(),
            by_identity: HashMap::new(),
            volumes: BTreeMap::new(),
            devices: HashMap::new(),
            next_id: ROOT_ID + 1,
        }
    }
}

/// Everything about a file that is ever asked for.
pub(super) fn examine(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    statx(fd, "", AtFlags::EMPTY_PATH, wanted)
}

fn identity(stat: &Statx, apart: bool) -> Identity {
    let by_mount = apart || kind(stat) == FileType::Directory;
    Identity {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        mount: if by_mount { stat.stx_mnt_id } else { 0 },
    }
}

pub(super) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

impl Nodes {
    /// The node that the guest means.
    pub(super) fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let known = self.by_id.get(&id).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&known.node))
    }

    /// The same, if the guest may write to it.
    pub(super) fn get_writable(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let known = self.by_id.get(&id).ok_or(Errno::STALE)?;
        let writable = |volume: &Volume| volume.writable && known.volumes.contains(&volume.id);
        match self.volumes.values().any(writable) {
            true => Ok(Arc::clone(&known.node)),
            false => Err(Errno::ROFS),
        }
    }

    /// Two nodes, both writable, with a volume in common: nothing goes from one volume to another.
    pub(super) fn get_pair(&self, a: u64, b: u64) -> Result<(Arc<Node>, Arc<Node>), Errno> {
        let pair = (self.get_writable(a)?, self.get_writable(b)?);
        let (a, b) = (&self.by_id[&a].volumes, &self.by_id[&b].volumes);
        match a.iter().any(|volume| b.contains(volume)) {
            true => Ok(pair),
            false => Err(Errno::XDEV),
        }
    }

    /// Tells the guest of the file behind `fd`, which it has found in the directory `parent`.
    pub(super) fn found(
        &mut self,
        parent: u64,
        fd: OwnedFd,
        stat: &Statx,
    ) -> Result<Arc<Node>, Errno> {
        let parent = self.by_id.get(&parent).ok_or(Errno::STALE)?;
        let (volumes, apart) = (parent.volumes.clone(), parent.apart);
        self.insert(fd, stat, &volumes, apart)
    }

    fn insert(
        &mut self,
        fd: OwnedFd,
        stat: &Statx,
        volumes: &[u64],
        apart: bool,
    ) -> Result<Arc<Node>, Errno> {
        let identity = identity(stat, apart);
        if let Some(id) = self.by_identity.get(&identity) {
            let known = self.by_id.get_mut(id).ok_or(Errno::STALE)?;
            known.lookups += 1;
            for volume in volumes {
                if !known.volumes.contains(volume) {
                    known.volumes.push(*volume);
                }
            }
            return Ok(Arc::clone(&known.node));
        }
        if self.by_id.len() >= NODES_MAX {
            return Err(Errno::NFILE);
        }
        let id = self.next_id;
        self.next_id += 1;
        let node = Arc::new(Node {
            id,
            kind: kind(stat),
            fd,
        });
        let known = Known {
            node: Arc::clone(&node),
            identity,
            lookups: 1,
            volumes: volumes.to_vec(),
            apart,
        };
        self.by_id.insert(id, known);
        self.by_identity.insert(identity, id);
        Ok(node)
    }

    /// The guest was told of a node `count` times less. One that it does not know is no error.
    pub(super) fn forget(&mut self, id: u64, count: u64) {
        let Some(known) = self.by_id.get_mut(&id) else {
            return;
        };
        let pinned = u64::from(self.volumes.values().any(|volume| volume.root == id));
        known.lookups = known.lookups.saturating_sub(count).max(pinned);
        if known.lookups == 0 {
            self.drop_node(id);
        }
    }

    fn drop_node(&mut self, id: u64) {
        if let Some(known) = self.by_id.remove(&id) {
            self.by_identity.remove(&known.identity);
        }
    }

    /// The guest forgets everything but the volumes.
    pub(super) fn forget_all(&mut self) {
        let roots: Vec<u64> = self.volumes.values().map(|volume| volume.root).collect();
        self.by_id.retain(|id, _| roots.contains(id));
        for known in self.by_id.values_mut() {
            known.lookups = 1;
        }
        let by_id = &self.by_id;
        self.by_identity.retain(|_, id| by_id.contains_key(id));
    }

    /// The root of a volume, which the guest is told of.
    pub(super) fn find_volume(&mut self, name: &str) -> Result<Arc<Node>, Errno> {
        let volume = self.volumes.get(name).ok_or(Errno::NOENT)?;
        let known = self.by_id.get_mut(&volume.root).ok_or(Errno::STALE)?;
        known.lookups += 1;
        Ok(Arc::clone(&known.node))
    }

    /// Names of the volumes.
    pub(super) fn volumes(&self) -> Vec<String> {
        self.volumes.keys().cloned().collect()
    }

    /// Their roots.
    pub(super) fn roots(&self) -> Vec<Arc<Node>> {
        let roots = self.volumes.values().map(|volume| volume.root);
        roots.filter_map(|root| self.get(root).ok()).collect()
    }

    /// Lets the guest find `fd` under `name`. A volume that is there stays what it is, and becomes
    /// writable if that is asked for.
    pub(super) fn add_volume(
        &mut self,
        name: &str,
        fd: OwnedFd,
        writable: bool,
    ) -> Result<(), VolumeError> {
        if !is_volume_name(name) {
            return Err(VolumeError::Name(name.chars().take(64).collect()));
        }
        if let Some(volume) = self.volumes.get_mut(name) {
            volume.writable |= writable;
            return Ok(());
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(VolumeError::Full);
        }
        let failed = |source: Errno| VolumeError::File {
            name: name.to_owned(),
            source: source.into(),
        };
        let stat = examine(fd.as_fd()).map_err(failed)?;
        if !matches!(kind(&stat), FileType::Directory | FileType::RegularFile) {
            return Err(VolumeError::Kind(name.to_owned()));
        }
        let mount = fstatvfs(&fd).map_err(failed)?;
        let apart = mount.f_flag.contains(StatVfsMountFlags::RDONLY);
        let id = self.next_id;
        self.next_id += 1;
        let root = self.insert(fd, &stat, &[id], apart).map_err(failed)?.id;
        let volume = Volume { id, root, writable };
        self.volumes.insert(name.to_owned(), volume);
        Ok(())
    }

    /// Takes a volume away; the guest loses what it knows through this volume alone. Returns the
    /// numbers of those nodes. Idempotent.
    pub(super) fn remove_volume(&mut self, name: &str) -> Vec<u64> {
        let Some(volume) = self.volumes.remove(name) else {
            return Vec::new();
        };
        for known in self.by_id.values_mut() {
            known.volumes.retain(|id| *id != volume.id);
        }
        let lost = self
            .by_id
            .iter()
            .filter(|(_, known)| known.volumes.is_empty());
        let lost: Vec<u64> = lost.map(|(id, _)| *id).collect();
        for id in &lost {
            self.drop_node(*id);
        }
        // What stays of it was held once for being a root.
        self.forget(volume.root, 1);
        lost
    }

    /// The inode number that the guest sees: volumes come from several file systems, whose numbers
    /// may be the same.
    pub(super) fn inode_number(&mut self, device: (u32, u32), inode: u64) -> u64 {
        let count = self.devices.len() as u64;
        let index = match self.devices.get(&device) {
            Some(index) => *index,
            None if self.devices.len() < DEVICES_MAX => {
                self.devices.insert(device, count);
                count
            }
            None => 0,
        };
        match inode >> INODE_BITS {
            0 => inode | index << INODE_BITS,
            _ => inode,
        }
    }
}

fn is_volume_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && name.bytes().any(|byte| byte != b'.')
}

//! What a container's writable layer takes of the scratch disk.
//!
//! The guest's kernel keeps no quotas, so the layer is walked: in the background, one layer at a time,
//! when somebody asks and the last count is old. A count that took long is not repeated soon, so that
//! a container with millions of files costs its guest a tenth of a processor at most.
//!
//! ```text
//!  refresh ──> is the count older than 10 s, and than ten times what it took?
//!                 └─ yes ──> walk (blocking thread) ──> told to whoever waits in `settled`
//! ```

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isopod_proto::agent::LayerStats;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, open, openat, statat};
use rustix::io::Errno;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// A count is good for so long,
const MAX_AGE: Duration = Duration::from_secs(10);
/// and for so many times as long as it took.
const REST: u32 = 10;

/// Folders in one another that are followed; each holds a descriptor. What is deeper is not counted.
const DEPTH_MAX: usize = 128;

/// Room for names of a folder's entries, in bytes; the longest entry takes 280.
const BUFFER_LEN: usize = 4096;

/// Fractions of an inode, for files with several links.
const FRACTION_BITS: u32 = 32;

/// One layer at a time.
static WALKS: Semaphore = Semaphore::const_new(1);

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    bytes: u64,
    inodes: u64,
}

/// A count, and when it was made.
#[derive(Debug, Clone, Copy)]
struct Counted {
    count: Count,
    at: Instant,
    took: Duration,
}

/// One layer's usage as far as it is known.
#[derive(Debug)]
pub(crate) struct LayerUsage {
    known: watch::Sender<Option<Counted>>,
    /// A walk is under way, or waits for its turn.
    walking: AtomicBool,
    /// The layer is being taken down.
    stopped: AtomicBool,
}

impl Default for LayerUsage {
    fn default() -> Self {
        Self {
            known: watch::Sender::new(None),
            walking: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }
}

impl LayerUsage {
    /// Counts the layer whose folder is `upper` in the background, if that is due.
    pub(crate) fn refresh(self: &Arc<Self>, upper: PathBuf) {
        let known = *self.known.borrow();
        let fresh = known.is_some_and(|it| it.at.elapsed() < MAX_AGE.max(it.took * REST));
        if fresh || self.walking.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let turn = WALKS.acquire().await;
            let (at, stop) = (Instant::now(), Arc::clone(&this));
            let walk = tokio::task::spawn_blocking(move || walk(&upper, &stop.stopped)).await;
            drop(turn);
            this.walking.store(false, Ordering::Relaxed);
            // What cannot be read, because it is being taken down, stays as it was.
            let count = match walk {
                Ok(Ok(count)) => Some(count),
                _ => this.known.borrow().map(|known| known.count),
            };
            let took = at.elapsed();
            this.known
                .send_replace(count.map(|count| Counted { count, at, took }));
        });
    }

    /// The count once no walk is under way, or as it is at the deadline.
    pub(crate) async fn settled(&self, deadline: Instant) -> Option<LayerStats> {
        let mut known = self.known.subscribe();
        while self.walking.load(Ordering::Relaxed) {
            if tokio::time::timeout_at(deadline, known.changed())
                .await
                .is_err()
            {
                break;
            }
        }
        let counted = (*known.borrow())?;
        Some(LayerStats {
            bytes: counted.count.bytes,
            inodes: counted.count.inodes,
            age_ns: u64::try_from(counted.at.elapsed().as_nanos()).unwrap_or(u64::MAX),
            ..Default::default()
        })
    }

    /// Ends a walk that is under way: the layer is being taken down.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// A folder that is being read: its descriptor, and how far it was read.
struct Folder {
    entries: OwnedFd,
    /// Folders in it that are still to be entered.
    below: Vec<std::ffi::CString>,
}

/// Counts blocks and inodes below `upper`, itself included. Blocking. The tree changes meanwhile: what
/// is gone is skipped, and no link is followed, so the walk never leaves it.
fn walk(upper: &Path, stopped: &AtomicBool) -> Result<Count, Errno> {
    let root = open(upper, FOLDER, Mode::empty())?;
    let mut sum = Sum::default();
    sum.add(&rustix::fs::fstat(&root)?);
    let mut path = vec![read_folder(root, &mut sum)?];
    while let Some(folder) = path.last_mut() {
        if stopped.load(Ordering::Relaxed) {
            return Err(Errno::CANCELED);
        }
        let Some(name) = folder.below.pop() else {
            path.pop();
            continue;
        };
        if path.len() >= DEPTH_MAX {
            continue;
        }
        let parent = path.last().map(|folder| folder.entries.as_fd());
        let opened = parent.map(|parent| openat(parent, name.as_c_str(), FOLDER, Mode::empty()));
        if let Some(Ok(opened)) = opened
            && let Ok(folder) = read_folder(opened, &mut sum)
        {
            path.push(folder);
        }
    }
    Ok(sum.count())
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Adds up what is in a folder, and notes the folders in it.
fn read_folder(folder: OwnedFd, sum: &mut Sum) -> Result<Folder, Errno> {
    let mut below = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); BUFFER_LEN];
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(status) = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        sum.add(&status);
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
            below.push(name.to_owned());
        }
    }
    Ok(Folder {
        entries: folder,
        below,
    })
}

/// Adds files up. One with several links adds a share for each, so that all of them add it once: the
/// links of a layer's file are all in the layer.
#[derive(Debug, Default)]
struct Sum {
    bytes: u64,
    inode_fractions: u64,
}

impl Sum {
    fn add(&mut self, status: &rustix::fs::Stat) {
        let is_folder = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        let links = if is_folder { 1 } else { status.st_nlink.max(1) };
        let bytes = u64::try_from(status.st_blocks)
            .unwrap_or(0)
            .saturating_mul(512);
        self.bytes = self.bytes.saturating_add(bytes / links);
        let share = (1_u64 << FRACTION_BITS) / links;
        self.inode_fractions = self.inode_fractions.saturating_add(share);
    }

    fn count(&self) -> Count {
        let half = 1 << (FRACTION_BITS - 1);
        Count {
            bytes: self.bytes,
            inodes: self.inode_fractions.saturating_add(half) >> FRACTION_BITS,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn count(path: &Path) -> Count {
        walk(path, &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn files_folders_and_links_are_counted_once_each() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let empty = count(folder.path());
        assert_eq!(empty.inodes, 1);
        fs::create_dir_all(at("a/b/c")).unwrap();
        fs::write(at("a/b/file"), vec![1; 100_000]).unwrap();
        for link in ["a/one", "a/two", "three"] {
            fs::hard_link(at("a/b/file"), at(link)).unwrap();
        }
        symlink("/", at("a/root")).unwrap();
        let full = count(folder.path());
        assert_eq!(full.inodes, 1 + 3 + 1 + 1);
        let blocks = fs::metadata(at("a/b/file")).unwrap().blocks() * 512;
        let grown = full.bytes - empty.bytes;
        assert!(grown >= blocks - 4, "{grown} for a file of {blocks}");
        assert!(grown < 2 * blocks, "{grown}: counted more than once");
    }

    #[test]
    fn folders_beyond_the_depth_are_left_and_the_walk_ends() {
        let folder = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", DEPTH_MAX + 50).collect();
        fs::create_dir_all(folder.path().join(deep)).unwrap();
        let inodes = count(folder.path()).inodes;
        assert_eq!(inodes, u64::try_from(DEPTH_MAX).unwrap() + 1);
    }

    #[tokio::test]
    async fn a_count_is_told_when_it_is_ready_and_kept_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let usage = Arc::new(LayerUsage::default());
        let soon = || Instant::now() + Duration::from_secs(30);
        assert!(usage.settled(soon()).await.is_none(), "nobody asked yet");
        usage.refresh(folder.path().to_owned());
        assert_eq!(usage.settled(soon()).await.unwrap().inodes, 1);
        fs::write(folder.path().join("new"), "x").unwrap();
        usage.refresh(folder.path().to_owned());
        let kept = usage.settled(soon()).await.unwrap();
        assert_eq!(kept.inodes, 1, "as it was a moment ago");
    }

    #[tokio::test]
    async fn a_layer_that_is_gone_has_no_count() {
        let usage = Arc::new(LayerUsage::default());
        usage.refresh("/nonexistent/layer".into());
        let deadline = Instant::now() + Duration::from_secs(30);
        assert!(usage.settled(deadline).await.is_none());
    }
}

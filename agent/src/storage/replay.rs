//! Does again what has happened to a volume on the host, so that those in the guest who watch it with
//! inotify are told.
//!
//! One thread makes the system calls. It has made itself known to the server of the volumes
//! ([`REPLAY_XATTR`]), which answers its requests as if they were done and changes nothing; the
//! kernel here raises the events that belong to them. A change that cannot be replayed, because the
//! next one has overtaken it, is left out: whoever looks sees what is there.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use isopod_proto::REPLAY_XATTR;
use isopod_proto::agent::{Change, ChangeKind};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
    mknodat, openat, renameat, setxattr, unlinkat, utimensat,
};
use tokio::sync::oneshot;

/// Jobs that wait; whoever has one more waits as well.
const JOBS_MAX: usize = 64;
/// Longest name of an entry.
const NAME_MAX: usize = 255;
/// Where things come from and go to that are not in the volume before or after: a name that no
/// volume has.
const ELSEWHERE: &str = ".isopod-somewhere-outside-the-volume";

/// The thread, which lives as long as this.
#[derive(Debug)]
pub(crate) struct Replayer {
    jobs: SyncSender<Job>,
}

#[derive(Debug)]
struct Job {
    volume: PathBuf,
    changes: Vec<Change>,
    done: oneshot::Sender<()>,
}

impl Replayer {
    /// Starts the thread, for the volumes below `root`.
    ///
    /// # Errors
    ///
    /// When there can be no more threads.
    pub(super) fn start(root: PathBuf) -> io::Result<Self> {
        let (jobs, receiver) = sync_channel(JOBS_MAX);
        std::thread::Builder::new()
            .name("replay".to_owned())
            .spawn(move || run(&root, &receiver))?;
        Ok(Self { jobs })
    }

    /// Replays what has happened to the volume at `volume`. False when too much waits already.
    pub(super) async fn replay(&self, volume: PathBuf, changes: Vec<Change>) -> bool {
        let (done, replayed) = oneshot::channel();
        let job = Job {
            volume,
            changes,
            done,
        };
        self.jobs.try_send(job).is_ok() && replayed.await.is_ok()
    }
}

fn run(root: &Path, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        for change in &job.changes {
            if let Err(error) = replay(root, &job.volume, change) {
                let kind = change.kind.value();
                tracing::debug!(%error, kind, "a change of a volume was not replayed");
            }
        }
        // Nobody may wait for it any more.
        let _ = job.done.send(());
    }
}

fn replay(root: &Path, volume: &Path, change: &Change) -> io::Result<()> {
    let kind = change.kind.enum_value_or_default();
    for name in [&change.name, &change.from] {
        if name.len() > NAME_MAX || name.contains(&b'/') || name.contains(&0) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    let itself = change.name.is_empty();
    let makes = matches!(
        kind,
        ChangeKind::CHANGE_KIND_CREATED | ChangeKind::CHANGE_KIND_MOVED
    );
    let absent = match makes {
        true => [&change.name[..], b"\0"].concat(),
        false => Vec::new(),
    };
    setxattr(root, REPLAY_XATTR, &absent, XattrFlags::empty())?;
    let by_path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let volume = openat(CWD, volume, by_path, Mode::empty())?;
    let name = change.name.as_slice();
    match kind {
        ChangeKind::CHANGE_KIND_CREATED => {
            mknodat(&volume, name, FileType::RegularFile, Mode::empty(), 0)?;
        }
        ChangeKind::CHANGE_KIND_MOVED if change.from.is_empty() => {
            let root = openat(CWD, root, by_path, Mode::empty())?;
            renameat(&root, ELSEWHERE, &volume, name)?;
        }
        ChangeKind::CHANGE_KIND_MOVED => renameat(&volume, change.from.as_slice(), &volume, name)?,
        ChangeKind::CHANGE_KIND_REMOVED => unlinkat(&volume, name, AtFlags::empty())?,
        ChangeKind::CHANGE_KIND_ATTRIBUTES if itself => touch(&volume)?,
        ChangeKind::CHANGE_KIND_ATTRIBUTES => {
            utimensat(&volume, name, &now(), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        ChangeKind::CHANGE_KIND_WRITTEN | ChangeKind::CHANGE_KIND_CLOSED => {
            let file = match itself {
                true => volume,
                false => openat(&volume, name, by_path, Mode::empty())?,
            };
            if kind == ChangeKind::CHANGE_KIND_WRITTEN {
                rewrite(&file)?;
            } else {
                // Its closing is the event.
                drop(fs::File::options().write(true).open(path_of(&file))?);
            }
        }
        ChangeKind::CHANGE_KIND_UNSPECIFIED => {}
    }
    Ok(())
}

fn path_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn now() -> Timestamps {
    let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    Timestamps {
        last_access: at(UTIME_OMIT),
        last_modification: at(UTIME_NOW),
    }
}

fn touch(file: &OwnedFd) -> io::Result<()> {
    Ok(utimensat(CWD, path_of(file), &now(), AtFlags::empty())?)
}

/// Gives a file the length that it has.
fn rewrite(file: &OwnedFd) -> io::Result<()> {
    let path = path_of(file);
    let metadata = fs::metadata(&path)?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let path = nix::NixPath::with_nix_path(path.as_str(), std::ffi::CStr::to_owned)?;
    let length = i64::try_from(metadata.size()).unwrap_or(i64::MAX);
    Ok(nix::unistd::truncate(path.as_c_str(), length)?)
}

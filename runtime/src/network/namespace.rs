//! Named network namespaces, as `ip netns` shows them: a file on which the namespace is mounted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::NetworkError;
use crate::id::random_hex;

/// Where they are. (`/var/run` is `/run`.)
pub(super) const NETNS_DIR: &str = "/run/netns";

/// Where a thread finds its own.
const OWN: &str = "/proc/thread-self/ns/net";

/// A namespace's name; it need not exist.
#[derive(Debug, Clone)]
pub(super) struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// A name that no other has, of the form that other runtimes use, too.
    ///
    /// # Errors
    ///
    /// When there are no random numbers.
    pub(super) fn random() -> Result<Self, NetworkError> {
        let hex = random_hex().map_err(NetworkError::io("reading", "/dev/urandom"))?;
        let name = [
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..32],
        ];
        Ok(Self {
            path: Path::new(NETNS_DIR).join(format!("cni-{}", name.join("-"))),
        })
    }

    /// By its path.
    pub(super) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a namespace is mounted there. Blocking.
    pub(super) fn exists(&self) -> bool {
        statfs(&self.path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
    }

    /// Makes it. Blocking.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the file may be there then.
    pub(super) fn create(&self) -> Result<(), NetworkError> {
        fs::create_dir_all(NETNS_DIR).map_err(NetworkError::io("creating", NETNS_DIR))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&self.path)
            .map_err(NetworkError::io("creating", &self.path))?;
        let path = self.path.clone();
        in_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let (none, bind) = (None::<&str>, MsFlags::MS_BIND);
            mount(Some(OWN), &path, none, bind, none)?;
            Ok(())
        })
        .map_err(NetworkError::io("making the network namespace", &self.path))
    }

    /// Removes it. Idempotent. Blocking.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn remove(&self) -> Result<(), NetworkError> {
        let error = |source: io::Error| {
            NetworkError::io("removing the network namespace", &self.path)(source)
        };
        match umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Not there, or a file without a namespace, as a crash or a reboot leaves it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(error(errno.into())),
        }
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error(source)),
            _ => Ok(()),
        }
    }

    /// Does `work` inside it, on a thread of its own. Blocking.
    ///
    /// # Errors
    ///
    /// When it cannot be entered, and what `work` says.
    pub(super) fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let file = File::open(&self.path)?;
        in_thread(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }
}

/// A thread that changed its namespace must not do anything else afterwards.
fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(work)?;
    thread
        .join()
        .unwrap_or_else(|_panic| Err(io::Error::other("the thread panicked")))
}

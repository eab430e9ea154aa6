//! The writable disk of a sandbox: a sparse ext4 file, copied from a template.
//!
//! `mkfs.ext4` runs once per size. Its result holds a few hundred KiB of data in a file of any
//! length, so a copy costs less than a millisecond, or nothing where the file system can share the
//! blocks. No journal: the disk does not outlive its guest. Inode tables count as zeroed, which
//! a sparse file's are, so the guest does not spend its first minutes writing zeros.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Raised when the template's making changes.
const TEMPLATE_VERSION: u32 = 1;
/// Where mkfs is found beside the daemon's own PATH.
const SBIN: &str = "/usr/sbin:/sbin";
/// Most of mkfs's complaint that is kept, in bytes.
const COMPLAINT_MAX: usize = 1024;

/// A writable disk could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScratchError {
    /// A file could not be written.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// mkfs.ext4 failed.
    #[error("mkfs.ext4 failed on {}: {complaint}", path.display())]
    Mkfs {
        /// The template.
        path: PathBuf,
        /// What it printed.
        complaint: String,
    },
}

impl ScratchError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// The template of writable disks of one size.
#[derive(Debug)]
pub(crate) struct ScratchTemplate {
    path: PathBuf,
    bytes: u64,
    making: Mutex<()>,
}

impl ScratchTemplate {
    /// The template for disks of `mib` MiB, below `root_dir`. Made when it is first used.
    pub(crate) fn new(root_dir: &Path, mib: u64) -> Self {
        let name = format!("scratch-v{TEMPLATE_VERSION}-{mib}.img");
        Self {
            path: root_dir.join("templates").join(name),
            bytes: mib.saturating_mul(1 << 20),
            making: Mutex::new(()),
        }
    }

    /// Length of the disks, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `disk`, an empty file at `path`. Blocking.
    ///
    /// # Errors
    ///
    /// When the template cannot be made or the disk not be written.
    pub(crate) fn fill(&self, disk: &File, path: &Path) -> Result<(), ScratchError> {
        self.make()?;
        let template = File::open(&self.path).map_err(ScratchError::io("opening", &self.path))?;
        copy_sparse(&template, disk, self.bytes).map_err(ScratchError::io("writing", path))
    }

    fn make(&self) -> Result<(), ScratchError> {
        let _one_at_a_time = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if self.path.exists() {
            return Ok(());
        }
        let new = self.path.with_extension("new");
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(ScratchError::io("creating", dir))?;
        }
        File::create(&new)
            .and_then(|file| file.set_len(self.bytes))
            .map_err(ScratchError::io("creating", &new))?;
        mkfs(&new)?;
        File::open(&new)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(ScratchError::io("keeping", &self.path))
    }
}

fn mkfs(path: &Path) -> Result<(), ScratchError> {
    let search = std::env::var("PATH").map_or(SBIN.into(), |path| format!("{path}:{SBIN}"));
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal,^resize_inode", "-m", "0"])
        .args(["-E", "assume_storage_prezeroed=1,nodiscard"])
        .arg(path)
        .env("PATH", search)
        .stdin(Stdio::null())
        .output()
        .map_err(ScratchError::io("running mkfs.ext4 on", path))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = output.stderr.get(..COMPLAINT_MAX).unwrap_or(&output.stderr);
    let complaint = String::from_utf8_lossy(complaint).trim().to_owned();
    Err(ScratchError::Mkfs {
        path: path.to_owned(),
        complaint,
    })
}

/// Copies the parts of `from` that hold data; `to` is empty.
fn copy_sparse(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(bytes)?;
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            // No data behind this point.
            Err(Errno::NXIO) => return Ok(()),
            start => start?,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?;
        copy_range(from, to, start, end)?;
        at = end;
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let left = usize::try_from(end - read_at).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), left)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn disk_is_a_sparse_copy_of_a_file_system() {
        let root = tempfile::tempdir().unwrap();
        let template = ScratchTemplate::new(root.path(), 1024);
        for name in ["a", "b"] {
            let path = root.path().join(name);
            let disk = File::create_new(&path).unwrap();
            template.fill(&disk, &path).unwrap();
            let metadata = disk.metadata().unwrap();
            assert_eq!(metadata.len(), 1 << 30);
            assert!(
                metadata.blocks() * 512 < 4 << 20,
                "{} blocks",
                metadata.blocks()
            );
            let check = Command::new("/usr/sbin/e2fsck")
                .args(["-f", "-n"])
                .arg(&path)
                .output()
                .unwrap();
            assert!(check.status.success(), "{check:?}");
        }
    }
}

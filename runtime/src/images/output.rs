//! A file that appears under its name when it is complete. Until then it has none, so that whatever
//! ends the command, the kernel takes the file away.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// A file that is being written.
#[derive(Debug)]
pub(super) enum Output {
    /// `O_TMPFILE`.
    Nameless(File),
    /// Where the file system has no such thing. It is removed when this is dropped.
    Named(NamedTempFile),
}

impl Output {
    /// An empty file in `folder`.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn new_in(folder: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self::Nameless(file.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => NamedTempFile::new_in(folder).map(Self::Named),
            Err(error) => Err(error.into()),
        }
    }

    /// The file, to be written.
    pub(super) fn file(&self) -> &File {
        match self {
            Self::Nameless(file) => file,
            Self::Named(file) => file.as_file(),
        }
    }

    /// Gives it its name, in place of what has that now; in the folder it was made in.
    ///
    /// # Errors
    /// It cannot have this name.
    pub(super) fn name(self, path: &Path) -> io::Result<()> {
        let file = match self {
            Self::Named(file) => {
                file.persist(path).map_err(|error| error.error)?;
                return Ok(());
            }
            Self::Nameless(file) => file,
        };
        match link(&file, path) {
            // Only a rename replaces.
            Err(Errno::EXIST) => {
                let beside = beside(path)?;
                link(&file, &beside)?;
                std::fs::rename(&beside, path).inspect_err(|_failed| {
                    // What matters was said.
                    let _ = std::fs::remove_file(&beside);
                })
            }
            done => Ok(done?),
        }
    }
}

/// As open(2) has it for `O_TMPFILE`.
fn link(file: &File, path: &Path) -> rustix::io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// Another name in the same folder, this process's own.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn a_file_is_not_seen_before_it_has_its_name_and_replaces_what_had_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.tar");
        for content in ["first", "second"] {
            let before = names(folder.path());
            let output = Output::new_in(folder.path()).unwrap();
            output.file().write_all(content.as_bytes()).unwrap();
            assert_eq!(names(folder.path()), before);
            output.name(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(names(folder.path()), std::slice::from_ref(&path));
        }
    }

    #[test]
    fn a_name_that_cannot_be_had_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder");
        std::fs::create_dir(&path).unwrap();
        let output = Output::new_in(folder.path()).unwrap();
        assert!(output.name(&path).is_err());
        assert_eq!(names(folder.path()), [path]);
    }
}

//! One record, one file, replaced atomically. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The form of the records that this daemon writes.
const VERSION: u32 = 1;
/// Largest record that is read, in bytes: an OCI spec's worth of labels many times over.
const RECORD_MAX: u64 = 16 << 20;

/// A record could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The file system refused.
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
    /// It is no record, or not one of this kind.
    #[error("the record {} does not make sense", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Written by another version of the daemon.
    #[error("the record {} has version {version}; this daemon reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        version: u32,
    },
    /// The daemon stopped while the file was being worked on.
    #[error("the work on a record was interrupted")]
    Interrupted,
}

impl RecordError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Json { path, source }
    }
}

#[derive(Serialize)]
struct Written<'a, T> {
    version: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Stored<T> {
    record: T,
}

/// A record's bytes on disk.
pub(super) fn encode<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>, RecordError> {
    serde_json::to_vec_pretty(&Written {
        version: VERSION,
        record,
    })
    .map_err(RecordError::json(path))
}

/// Reads a record; `None` when there is no file.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(RecordError::io("opening", path))?,
    };
    let bytes = read_bounded(path, file)?;
    let Version { version } = serde_json::from_slice(&bytes).map_err(RecordError::json(path))?;
    if version != VERSION {
        return Err(RecordError::Version {
            path: path.to_owned(),
            version,
        });
    }
    let stored: Stored<T> = serde_json::from_slice(&bytes).map_err(RecordError::json(path))?;
    Ok(Some(stored.record))
}

/// Reads JSON that is no record: nobody but [`write()`] made it, and it has no version.
pub(super) fn read_plain<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let file = File::open(path).map_err(RecordError::io("opening", path))?;
    serde_json::from_slice(&read_bounded(path, file)?).map_err(RecordError::json(path))
}

fn read_bounded(path: &Path, file: File) -> Result<Vec<u8>, RecordError> {
    let mut bytes = Vec::new();
    file.take(RECORD_MAX)
        .read_to_end(&mut bytes)
        .map_err(RecordError::io("reading", path))?;
    Ok(bytes)
}

/// Writes a file that may be lost with the host. What was there before is gone at once.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    new_private_file(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(RecordError::io("writing", path))
}

fn new_private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Puts `bytes` in the place of `path`, whole or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = new_private_file(&new)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&new, path)
    };
    write().map_err(RecordError::io("writing", path))?;
    sync_parent(path)
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RecordError::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder that may be gone already; of what is in it, the file `last` goes last.
pub(super) fn remove_dir_keeping_last(dir: &Path, last: &str) -> Result<(), RecordError> {
    for name in names(dir)? {
        let path = dir.join(&name);
        let kind = fs::symlink_metadata(&path).map_err(RecordError::io("reading", &path))?;
        if kind.is_dir() {
            fs::remove_dir_all(&path).map_err(RecordError::io("removing", &path))?;
        } else if name != last {
            remove(&path)?;
        }
    }
    remove(&dir.join(last))?;
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RecordError::io("removing", dir)(error))
        }
        _ => sync_parent(dir),
    }
}

/// Names in a folder; none when there is no folder. Names that are no UTF-8 are not ours.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, RecordError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(RecordError::io("listing", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(RecordError::io("listing", dir))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// Makes a folder, and those above it, for this user alone.
pub(super) fn create_private_dir(dir: &Path) -> Result<(), RecordError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(RecordError::io("creating", dir))
}

/// Makes a rename or a removal in a folder durable.
fn sync_parent(path: &Path) -> Result<(), RecordError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    match File::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => opened
            .and_then(|dir| dir.sync_all())
            .map_err(RecordError::io("flushing", parent)),
    }
}

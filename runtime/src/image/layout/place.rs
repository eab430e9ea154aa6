//! Where a layout is served: a socket in a folder of its own, beside the daemon's socket, where the
//! daemon surely sees it. Nobody else may enter the folder.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::LayoutError;

/// How the folders' names begin.
const PREFIX: &str = "import-";

/// The socket in the folder. Short: a socket's whole path has 107 bytes.
const SOCKET: &str = "r.sock";

/// A folder for a socket, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    /// A folder in `beside`.
    ///
    /// # Errors
    /// [`LayoutError::Write`].
    pub(crate) fn new(beside: &Path) -> Result<Self, LayoutError> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(beside);
        let folder = folder.map_err(LayoutError::write(beside))?;
        Ok(Self { folder })
    }

    /// Where to listen.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }
}

/// Removes the folders in `beside` whose processes were killed: nobody listens there any more. What
/// else is there stays, and so does what cannot be removed: it is in nobody's way. Blocking.
///
/// To be called before the daemon takes calls, so that a folder without a socket is none that is just being
/// made: who makes one has reached a daemon before.
pub(crate) fn sweep(beside: &Path) {
    let Ok(entries) = fs::read_dir(beside) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        // Links are not followed.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            let folder = entry.path();
            match remove(&folder) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(folder = %folder.display(), "removed what an import left");
                }
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "could not remove what an import left");
                }
            }
        }
    }
}

/// Whether the folder is gone: not if somebody listens in it, or it is none of ours.
fn remove(folder: &Path) -> io::Result<bool> {
    let socket = folder.join(SOCKET);
    match fs::symlink_metadata(&socket) {
        Ok(found) if !found.file_type().is_socket() => return Ok(false),
        Ok(_) => match UnixStream::connect(&socket) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(&socket)?;
            }
            _ => return Ok(false),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match fs::remove_dir(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_folders_of_dead_imports_are_swept() {
        let beside = TempDir::new().expect("a directory");
        let path = |name: &str| beside.path().join(name);
        let folder = |name: &str| fs::create_dir(path(name)).expect("a folder");
        let listen = |name: &str| UnixListener::bind(path(name).join(SOCKET)).expect("a socket");

        folder("import-dead");
        drop(listen("import-dead"));
        folder("import-early");

        folder("import-alive");
        let _alive = listen("import-alive");
        folder("import-other");
        fs::write(path("import-other").join(SOCKET), "").expect("a file");
        folder("import-full");
        fs::write(path("import-full").join("file"), "").expect("a file");
        folder("other");
        drop(listen("other"));
        std::os::unix::fs::symlink("other", path("import-link")).expect("a link");
        fs::write(path("import-file"), "").expect("a file");

        sweep(beside.path());
        let entries = fs::read_dir(beside.path()).expect("a folder");
        let mut left: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        left.sort_unstable();
        let expected = [
            "import-alive",
            "import-file",
            "import-full",
            "import-link",
            "import-other",
            "other",
        ];
        assert_eq!(left, expected);
        assert!(path("other").join(SOCKET).exists());
    }

    #[test]
    fn a_place_goes_with_its_owner() {
        let beside = TempDir::new().expect("a directory");
        let place = Place::new(beside.path()).expect("a place");
        let _listener = UnixListener::bind(place.socket()).expect("a socket");
        drop(place);
        let mut entries = fs::read_dir(beside.path()).expect("a folder");
        assert!(entries.next().is_none());
    }
}

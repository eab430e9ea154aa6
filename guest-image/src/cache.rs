//! Results kept under a key of their inputs: `~/.cache/isopod` (`XDG_CACHE_HOME` is honoured).
//!
//! ```text
//! <root>/<kind>/<key>/         a finished result; never changes
//! <root>/<kind>/.<key>.lock    held while one process makes it
//! <root>/<kind>/.<key>.PID     being made; left over only by a crash, removed by the next maker
//! <root>/<name>                symbolic link to the newest result's file
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A step on files of the cache that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct CacheError {
    /// What was tried.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Wraps an I/O error with what was tried on which path.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError {
        action,
        path,
        source,
    }
}

/// A result's inputs, each under a name, as one digest.
#[derive(Debug, Clone, Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds an input. Lengths are hashed too: no two lists of inputs collide by concatenation.
    #[must_use]
    pub fn input(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), value.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key as a folder's name: 20 hexadecimal digits.
    #[must_use]
    pub fn name(self) -> String {
        hex::encode(&self.0.finalize()[..10])
    }
}

/// The cache's folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's own.
    #[must_use]
    pub fn of_user() -> Self {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from("/var/cache"));
        Self {
            root: base.join("isopod"),
        }
    }

    /// One in a given folder.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the result of `kind` under `key` is, whether or not it has been made.
    #[must_use]
    pub fn entry(&self, kind: &str, key: &str) -> PathBuf {
        self.root.join(kind).join(key)
    }

    /// Returns the result's folder; when it is not there, `make` fills an empty one, which is then
    /// published under its name in one step. Two processes do not make the same result twice: the
    /// second waits for the first.
    ///
    /// # Errors
    ///
    /// What `make` returns, or a [`CacheError`]; nothing is published then.
    pub fn get_or_make<E: From<CacheError>>(
        &self,
        kind: &str,
        key: &str,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let entry = self.entry(kind, key);
        if entry.is_dir() {
            return Ok(entry);
        }
        let folder = self.root.join(kind);
        fs::create_dir_all(&folder).map_err(failed("creating", &folder))?;
        let lock_path = folder.join(format!(".{key}.lock"));
        let lock = File::create(&lock_path).map_err(failed("creating", &lock_path))?;
        lock.lock().map_err(failed("locking", &lock_path))?;
        if entry.is_dir() {
            return Ok(entry);
        }
        remove_leftovers(&folder, key)?;
        let draft = folder.join(format!(".{key}.{}", std::process::id()));
        fs::create_dir(&draft).map_err(failed("creating", &draft))?;
        if let Err(error) = make(&draft) {
            // The first error is the one to report.
            let _ = fs::remove_dir_all(&draft);
            return Err(error);
        }
        fs::rename(&draft, &entry).map_err(failed("publishing", &entry))?;
        Ok(entry)
    }

    /// Points the symbolic link `name` at `target`, replacing it in one step.
    ///
    /// # Errors
    ///
    /// When the link cannot be made.
    pub fn link(&self, name: &str, target: &Path) -> Result<PathBuf, CacheError> {
        let link = self.root.join(name);
        if fs::read_link(&link).is_ok_and(|current| current == target) {
            return Ok(link);
        }
        let draft = self.root.join(format!(".{name}.{}", std::process::id()));
        std::os::unix::fs::symlink(target, &draft).map_err(failed("linking", &draft))?;
        fs::rename(&draft, &link).map_err(failed("linking", &link))?;
        Ok(link)
    }
}

/// Removes drafts of a maker that crashed. The caller holds the key's lock, so no maker lives.
fn remove_leftovers(folder: &Path, key: &str) -> Result<(), CacheError> {
    let prefix = format!(".{key}.");
    for entry in fs::read_dir(folder).map_err(failed("reading", folder))? {
        let path = entry.map_err(failed("reading", folder))?.path();
        let is_draft = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(&prefix) && !name.ends_with(".lock"));
        if is_draft {
            fs::remove_dir_all(&path).map_err(failed("removing", &path))?;
        }
    }
    Ok(())
}

/// SHA-256 of a file's bytes, in hexadecimal.
///
/// # Errors
///
/// When the file cannot be read.
pub fn digest(path: &Path) -> Result<String, CacheError> {
    let mut file = File::open(path).map_err(failed("opening", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer).map_err(failed("reading", path))? {
            0 => break,
            length => hash.update(&buffer[..length]),
        }
    }
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inputs: &[(&str, &str)]) -> String {
        inputs
            .iter()
            .fold(Key::default(), |key, (name, value)| key.input(name, value))
            .name()
    }

    #[test]
    fn a_key_changes_with_every_input() {
        let keys = [
            key(&[]),
            key(&[("a", "b")]),
            key(&[("a", "c")]),
            key(&[("b", "b")]),
            key(&[("ab", "")]),
            key(&[("", "ab")]),
            key(&[("a", "b"), ("a", "b")]),
        ];
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(key(&[("a", "b")]), key(&[("a", "b")]));
        assert!(keys.iter().all(|key| key.len() == 20));
    }

    #[test]
    fn a_result_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let mut made = 0;
        for _ in 0..3 {
            let entry = cache
                .get_or_make::<CacheError>("kind", "key", |draft| {
                    made += 1;
                    fs::write(draft.join("x"), "1").map_err(failed("writing", draft))
                })
                .unwrap();
            assert_eq!(fs::read_to_string(entry.join("x")).unwrap(), "1");
        }
        assert_eq!(made, 1);
    }

    #[test]
    fn a_maker_that_fails_publishes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let error = cache
            .get_or_make::<CacheError>("kind", "key", |draft| {
                fs::write(draft.join("half"), "1").unwrap();
                Err(failed("writing", draft)(io::Error::other("disk full")))
            })
            .unwrap_err();
        assert_eq!(error.action, "writing");
        assert!(!cache.entry("kind", "key").exists());
        let left: Vec<_> = fs::read_dir(folder.path().join("kind")).unwrap().collect();
        assert_eq!(left.len(), 1, "only the lock is left: {left:?}");
    }

    #[test]
    fn what_a_crashed_maker_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let leftover = folder.path().join("kind/.key.99999999");
        fs::create_dir_all(leftover.join("deep")).unwrap();
        cache
            .get_or_make::<CacheError>("kind", "key", |_| Ok(()))
            .unwrap();
        assert!(!leftover.exists());
    }

    #[test]
    fn a_link_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        cache.link("vmlinux", Path::new("/a")).unwrap();
        let link = cache.link("vmlinux", Path::new("/b")).unwrap();
        assert_eq!(fs::read_link(link).unwrap(), Path::new("/b"));
    }

    #[test]
    fn digest_is_sha_256_of_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(
            digest(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}

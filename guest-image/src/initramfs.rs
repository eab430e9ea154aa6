//! The guest's initramfs: the agent as `/init`, a console to start on, and nothing else.
//!
//! The agent mounts everything it needs itself. `/dev/console` must be in the archive because the
//! kernel opens it for PID 1 before any file system is mounted.

use std::path::{Path, PathBuf};

use crate::cache::{Cache, CacheError, Key, failed};
use crate::cpio::{Archive, CpioError};
use crate::elf::is_static;

/// Bumped when the layout changes, so that older results are not taken for new ones.
const RECIPE: &str = "1";

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The cache failed, or the agent's file.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The agent is too large for the format.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    /// The kernel would find no interpreter for it.
    #[error("{} is not a statically linked program: the initramfs has no libraries", .0.display())]
    NotStatic(PathBuf),
}

/// The archive's bytes for an agent's bytes.
///
/// # Errors
///
/// [`CpioError`] when the agent is too large.
pub fn archive(agent: &[u8]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Archive::new();
    archive.directory("dev", 0o755);
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, agent)?;
    Ok(archive.finish())
}

/// Builds the initramfs around the agent's binary, or finds it in the cache.
///
/// # Errors
///
/// [`InitramfsError`] when the agent cannot be read, is not static, or the cache fails.
pub fn build(cache: &Cache, agent: &Path) -> Result<PathBuf, InitramfsError> {
    let bytes = std::fs::read(agent).map_err(failed("reading", agent))?;
    if !is_static(&bytes) {
        return Err(InitramfsError::NotStatic(agent.to_owned()));
    }
    let key = Key::default()
        .input("recipe", RECIPE)
        .input("agent", &bytes)
        .name();
    let entry = cache.get_or_make::<InitramfsError>("initramfs", &key, |draft| {
        let path = draft.join("initramfs.cpio");
        std::fs::write(&path, archive(&bytes)?).map_err(failed("writing", &path))?;
        Ok(())
    })?;
    let path = entry.join("initramfs.cpio");
    cache.link("initramfs.cpio", &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::elf;

    #[test]
    fn two_builds_from_one_agent_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let agent = folder.path().join("agent");
        std::fs::write(&agent, elf(&[1, 1])).unwrap();
        let built: Vec<Vec<u8>> = ["one", "two"]
            .into_iter()
            .map(|name| {
                let cache = Cache::at(&folder.path().join(name));
                std::fs::read(build(&cache, &agent).unwrap()).unwrap()
            })
            .collect();
        assert_eq!(built[0], built[1]);
    }

    #[test]
    fn another_agent_gives_another_initramfs_and_the_link_follows() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("cache"));
        let agent = folder.path().join("agent");
        std::fs::write(&agent, elf(&[1])).unwrap();
        let first = build(&cache, &agent).unwrap();
        std::fs::write(&agent, elf(&[1, 1])).unwrap();
        let second = build(&cache, &agent).unwrap();
        assert_ne!(first, second);
        let link = cache.root().join("initramfs.cpio");
        assert_eq!(std::fs::read_link(link).unwrap(), second);
    }

    #[test]
    fn an_agent_that_needs_a_dynamic_linker_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("cache"));
        let agent = folder.path().join("agent");
        for bytes in [
            elf(&[1, 3]),
            b"#!/bin/sh\n".to_vec(),
            elf(&[1])[..66].to_vec(),
        ] {
            std::fs::write(&agent, bytes).unwrap();
            assert!(matches!(
                build(&cache, &agent),
                Err(InitramfsError::NotStatic(_))
            ));
        }
    }
}

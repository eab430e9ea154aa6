//! The agent's image: an EROFS file system with the static agent as `/init`, and the folders that it
//! mounts on. Guests read it in place, so it is not compressed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Cache, CacheError, Key, failed};
use crate::elf::is_static;

/// Bumped when the layout changes, so that older results are not taken for new ones.
const RECIPE: &str = "1";

/// The file's name in the cache.
const NAME: &str = "agent.erofs";

/// Where the agent mounts what it needs: the root is read-only.
const FOLDERS: [&str; 5] = ["dev", "newroot", "proc", "run", "sys"];

/// Of the file system: the same inputs give the same bytes.
const UUID: &str = "1d5f0b5e-6f0d-4d3a-9f0e-70d0a6e17a11";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum AgentImageError {
    /// The cache failed, or a file.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The kernel would find no interpreter for it.
    #[error("{} is not a statically linked program: the image has no libraries", .0.display())]
    NotStatic(PathBuf),
    /// `mkfs.erofs` failed.
    #[error("mkfs.erofs (package erofs-utils): {0}")]
    Mkfs(String),
}

/// Builds the image around the agent's binary, or finds it in the cache. Needs `mkfs.erofs`.
///
/// # Errors
///
/// [`AgentImageError`] when the agent cannot be read, is not static, `mkfs.erofs` or the cache fails.
pub fn build(cache: &Cache, agent: &Path) -> Result<PathBuf, AgentImageError> {
    let bytes = fs::read(agent).map_err(failed("reading", agent))?;
    if !is_static(&bytes) {
        return Err(AgentImageError::NotStatic(agent.to_owned()));
    }
    let key = Key::default()
        .input("recipe", RECIPE)
        .input("agent", &bytes)
        .name();
    let entry = cache.get_or_make::<AgentImageError>("agent-image", &key, |draft| {
        let root = draft.join("root");
        lay_out(&root, &bytes)?;
        make(&draft.join(NAME), &root)?;
        Ok(fs::remove_dir_all(&root).map_err(failed("removing", &root))?)
    })?;
    let path = entry.join(NAME);
    cache.link(NAME, &path)?;
    Ok(path)
}

fn lay_out(root: &Path, agent: &[u8]) -> Result<(), CacheError> {
    for folder in FOLDERS.map(|name| root.join(name)) {
        fs::create_dir_all(&folder).map_err(failed("creating", &folder))?;
    }
    let init = root.join("init");
    fs::write(&init, agent).map_err(failed("writing", &init))?;
    let executable = Permissions::from_mode(0o755);
    fs::set_permissions(&init, executable).map_err(failed("writing", &init))
}

/// Whole blocks alone: what lies in an inode's tail cannot be read in place.
fn make(image: &Path, root: &Path) -> Result<(), AgentImageError> {
    let mut mkfs = Command::new("mkfs.erofs");
    mkfs.args([
        "--quiet",
        "--all-root",
        "-Enoinline_data",
        "-T0",
        "-U",
        UUID,
    ]);
    let output = mkfs.arg(image).arg(root).output();
    let output = output.map_err(|error| AgentImageError::Mkfs(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(AgentImageError::Mkfs(said.trim().to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::tests::elf;

    #[test]
    fn two_builds_from_one_agent_give_the_same_bytes_and_another_agent_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let agent = folder.path().join("agent");
        let build_in = |cache: &str, segments: &[u32]| {
            fs::write(&agent, elf(segments)).unwrap();
            let cache = Cache::at(&folder.path().join(cache));
            fs::read(build(&cache, &agent).unwrap()).unwrap()
        };
        let first = build_in("one", &[1, 1]);
        assert_eq!(first, build_in("two", &[1, 1]));
        assert_ne!(first, build_in("one", &[1]));
        assert_eq!(first.len() % 4096, 0, "guests map whole pages");
    }

    #[test]
    fn an_agent_that_needs_a_dynamic_linker_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let agent = folder.path().join("agent");
        fs::write(&agent, elf(&[1, 3])).unwrap();
        let built = build(&Cache::at(folder.path()), &agent);
        assert!(matches!(built, Err(AgentImageError::NotStatic(_))));
    }
}

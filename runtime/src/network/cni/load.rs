//! Finds the network that pods join.
//!
//! Read anew each time: the folders hold a handful of small files, and what an administrator or a
//! cluster's network changed counts at once, whatever the order of renames and writes.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::list::{ListError, Network};
use crate::chain::chain;

/// Extensions of configuration files.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// Most files of a folder that are looked at.
const FILES_MAX: usize = 256;
/// Largest configuration file, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Most problems that are told.
const PROBLEMS_MAX: usize = 5;

/// There is no network for pods.
#[derive(Debug, thiserror::Error)]
pub(crate) struct NoNetwork {
    dirs: Vec<PathBuf>,
    /// Files that configure none, and why.
    problems: Vec<String>,
}

impl fmt::Display for NoNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dirs: Vec<_> = self
            .dirs
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        write!(
            formatter,
            "no CNI network is configured in {}",
            dirs.join(" or ")
        )?;
        for problem in self.problems.iter().take(PROBLEMS_MAX) {
            write!(formatter, "; {problem}")?;
        }
        if self.problems.len() > PROBLEMS_MAX {
            formatter.write_str("; and more")?;
        }
        Ok(())
    }
}

/// Why one file is not used.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot be read")]
    Io(#[from] io::Error),
    #[error("is over {FILE_MAX} bytes")]
    Size,
    #[error(transparent)]
    List(#[from] ListError),
}

impl Network {
    /// The first network, by order of the folders and of the names of the files in them. Blocking.
    ///
    /// # Errors
    ///
    /// [`NoNetwork`] says why each file is none.
    pub(crate) fn load(dirs: &[PathBuf]) -> Result<Self, NoNetwork> {
        let mut problems = Vec::new();
        for path in dirs.iter().flat_map(|dir| files(dir)) {
            match read(&path) {
                Ok(network) => return Ok(network),
                Err(error) => problems.push(format!("{} {}", path.display(), chain(&error))),
            }
        }
        Err(NoNetwork {
            dirs: dirs.to_vec(),
            problems,
        })
    }
}

/// The folder's configuration files by name; none when there is no folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let is_configuration = |path: &PathBuf| {
        let extension = path.extension().and_then(OsStr::to_str);
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
    };
    let mut files: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_configuration)
        .take(FILES_MAX)
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Network, FileError> {
    let mut text = Vec::new();
    File::open(path)?
        .take(FILE_MAX + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(FileError::Size);
    }
    Ok(Network::parse(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(name: &str) -> String {
        format!(r#"{{"name":"{name}","cniVersion":"1.0.0","plugins":[{{"type":"x"}}]}}"#)
    }

    #[test]
    fn the_first_good_file_of_the_first_folder_is_the_network() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (root.path().join("first"), root.path().join("second"));
        let dirs = [first.clone(), second.clone()];
        fs::create_dir_all(&second).unwrap();
        fs::write(second.join("00.conf"), list("second")).unwrap();
        assert_eq!(Network::load(&dirs).unwrap().name, "second");
        fs::create_dir_all(&first).unwrap();
        fs::write(first.join("20.conflist"), list("later")).unwrap();
        fs::write(first.join("10.conflist"), list("first")).unwrap();
        fs::write(first.join("05.conflist"), "{").unwrap();
        fs::write(first.join("01.txt"), list("text")).unwrap();
        assert_eq!(Network::load(&dirs).unwrap().name, "first");
        fs::remove_file(first.join("10.conflist")).unwrap();
        assert_eq!(Network::load(&dirs).unwrap().name, "later");
    }

    #[test]
    fn no_network_says_where_and_why() {
        let root = tempfile::tempdir().unwrap();
        let dirs = [root.path().to_owned(), "/nowhere".into()];
        fs::write(root.path().join("a.conflist"), "{").unwrap();
        let error = Network::load(&dirs).unwrap_err().to_string();
        for text in ["or /nowhere", "a.conflist is not a JSON object"] {
            assert!(error.contains(text), "{error}");
        }
    }
}

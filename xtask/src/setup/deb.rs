//! Debian packages that are unpacked beside the system: what cannot be installed together with
//! another package.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use isopod_guest_image::cache::Key;

use crate::progress::step;
use crate::project;

/// The folder with a package's files, as they would lie under `/`; fetched into the cache if it does
/// not have the version that apt would install.
pub(crate) fn unpacked(package: &str) -> Result<PathBuf> {
    let policy = stdout(Command::new("apt-cache").args(["policy", package]))?;
    let version = candidate(&policy)
        .with_context(|| format!("apt knows no package {package}: run `apt-get update`"))?;
    let key = Key::default()
        .input("package", package)
        .input("version", version)
        .name();
    project::cache().get_or_make("deb", &format!("{package}.{key}"), |draft| {
        step(&format!("Fetching Debian's {package}"), || {
            unpack(package, draft)
        })
    })
}

fn unpack(package: &str, draft: &Path) -> Result<()> {
    let folder = tempfile::tempdir().context("making a folder for a package")?;
    stdout(
        Command::new("apt-get")
            .args(["download", "-qq", package])
            .current_dir(folder.path()),
    )?;
    let archive = std::fs::read_dir(folder.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    stdout(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(archive)
            .arg(draft),
    )?;
    Ok(())
}

/// The version that apt would install, from what `apt-cache policy` prints.
fn candidate(policy: &str) -> Option<&str> {
    let mut lines = policy.lines().map(str::trim);
    let version = lines.find_map(|line| line.strip_prefix("Candidate: "))?;
    (version != "(none)").then_some(version)
}

fn stdout(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("running {program}"))?;
    ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).with_context(|| format!("the output of {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_is_what_apt_would_install() {
        let policy = "busybox:\n  Installed: (none)\n  Candidate: 1:1.35.0-4+deb12u1\n";
        assert_eq!(candidate(policy), Some("1:1.35.0-4+deb12u1"));
        assert_eq!(candidate("x:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }
}

//! The emulated host's kernel and modules, from Debian's `linux-image-6.12*-amd64`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cache, command};

/// The unpacked package.
#[derive(Debug)]
pub(super) struct Host {
    /// Kernel release, as in `uname -r`.
    pub(super) release: String,
    /// The kernel image.
    pub(super) kernel: PathBuf,
    /// `lib/modules/<release>` of the package.
    pub(super) modules: PathBuf,
}

impl Host {
    fn in_dir(root: &Path, package: &str) -> Result<Self> {
        let release = package
            .strip_prefix("linux-image-")
            .with_context(|| format!("{package} is no kernel package"))?
            .to_owned();
        Ok(Self {
            kernel: root.join(format!("boot/vmlinuz-{release}")),
            modules: root.join(format!("lib/modules/{release}")),
            release,
        })
    }
}

/// The kernel from the cache, or downloaded and unpacked into it. Nothing is installed.
pub(super) fn prepare() -> Result<Host> {
    let dir = cache::dir()?.join("lab");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    if let Some(package) = newest_cached(&dir)? {
        return Host::in_dir(&dir.join(&package), &package);
    }
    let package = newest_available()?;
    eprintln!("lab: downloading {package} (the kernel with kvm_amd that the lab boots)");
    let unpacked = tempfile_in(&dir)?;
    command::run(
        Command::new("apt-get")
            .args(["download", "-q", &package])
            .current_dir(&unpacked),
    )?;
    let deb = only_file(&unpacked)?;
    command::run(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
    fs::remove_file(&deb).with_context(|| format!("removing {}", deb.display()))?;
    let host = Host::in_dir(&unpacked, &package)?;
    command::run(
        Command::new("depmod")
            .arg("-b")
            .arg(&unpacked)
            .arg(&host.release),
    )?;
    let root = dir.join(&package);
    fs::rename(&unpacked, &root).with_context(|| format!("publishing {}", root.display()))?;
    Host::in_dir(&root, &package)
}

fn newest_cached(dir: &Path) -> Result<Option<String>> {
    let mut packages = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("linux-image-") {
            packages.push(name);
        }
    }
    packages.sort_by_key(|name| version_key(name));
    Ok(packages.pop())
}

fn newest_available() -> Result<String> {
    let list = command::output(Command::new("apt-cache").args([
        "search",
        "--names-only",
        r"^linux-image-6\.12\.[0-9]+\+deb12-amd64$",
    ]))?;
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .max_by_key(|name| version_key(name))
        .map(str::to_owned)
        .context("apt knows no linux-image-6.12*-amd64: run `apt-get update`, or add Debian 12's updates")
}

/// The numbers of a package's name, so that 6.12.10 comes after 6.12.9.
fn version_key(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn tempfile_in(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(format!(".unpacking-{}", std::process::id()));
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(dir)
        .with_context(|| format!("listing {}", dir.display()))?
        .next()
        .with_context(|| format!("apt-get downloaded nothing into {}", dir.display()))??;
    Ok(entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_key_orders_by_number_not_by_text() {
        let nine = version_key("linux-image-6.12.9+deb12-amd64");
        let ten = version_key("linux-image-6.12.10+deb12-amd64");
        assert!(nine < ten);
    }
}

//! What the lab's kernel starts with: busybox, a few modules, and the first stage's script.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::host::Host;
use crate::{cache, command};

/// Loaded before the root file system is there, with what they depend on. Others load themselves.
const MODULES: &[&str] = &["9p", "9pnet_virtio", "overlay", "virtio_blk", "ext4"];

const FIRST_STAGE: &str = include_str!("first-stage.sh");
const SECOND_STAGE: &str = include_str!("second-stage.sh");
const BUSYBOX: &str = "/bin/busybox";

/// The initramfs from the cache, or built into it; keyed by all that goes in.
pub(super) fn prepare(host: &Host) -> Result<PathBuf> {
    let modules = load_order(host)?;
    let busybox = fs::read(BUSYBOX)
        .with_context(|| format!("reading {BUSYBOX}: install the package busybox-static"))?;
    let mut key = Sha256::new();
    for part in [
        host.release.as_bytes(),
        FIRST_STAGE.as_bytes(),
        SECOND_STAGE.as_bytes(),
        &busybox,
    ] {
        key.update(part.len().to_le_bytes());
        key.update(part);
    }
    key.update(modules.join(" "));
    let path = cache::dir()?
        .join("lab")
        .join(format!("initramfs-{}", &hex::encode(key.finalize())[..16]));
    if !path.exists() {
        build(host, &modules, &path)?;
    }
    Ok(path)
}

/// Paths of the modules, relative to `lib/modules/<release>`, dependencies first.
fn load_order(host: &Host) -> Result<Vec<String>> {
    let path = host.modules.join("modules.dep");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let lines: HashMap<String, Vec<&str>> = text
        .lines()
        .filter_map(|line| {
            let (module, needs) = line.split_once(':')?;
            Some((
                module_name(module),
                [module]
                    .into_iter()
                    .chain(needs.split_whitespace())
                    .collect(),
            ))
        })
        .collect();
    let mut order = Vec::new();
    for name in MODULES {
        let chain = lines
            .get(&name.replace('-', "_"))
            .with_context(|| format!("kernel {} has no module {name}", host.release))?;
        for module in chain.iter().rev() {
            if !order.iter().any(|seen| seen == module) {
                order.push((*module).to_owned());
            }
        }
    }
    Ok(order)
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn build(host: &Host, modules: &[String], path: &Path) -> Result<()> {
    let dir = path.with_extension(format!("dir-{}", std::process::id()));
    for folder in [
        "bin", "modules", "dev", "proc", "sys", "lower", "rw", "root",
    ] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::copy(BUSYBOX, dir.join("bin/busybox")).context("copying busybox")?;
    write_script(&dir.join("init"), FIRST_STAGE)?;
    write_script(&dir.join("second-stage.sh"), SECOND_STAGE)?;
    let mut order = String::new();
    for module in modules {
        let name = format!("{}.ko", module_name(module));
        let source = host.modules.join(module);
        let bytes = if source.extension().is_some_and(|end| end == "xz") {
            let out = Command::new("xz")
                .arg("-dc")
                .arg(&source)
                .output()
                .context("starting xz")?;
            if !out.status.success() {
                bail!("xz failed on {}", source.display());
            }
            out.stdout
        } else {
            fs::read(&source).with_context(|| format!("reading {}", source.display()))?
        };
        fs::write(dir.join("modules").join(&name), bytes).context("writing a module")?;
        order.push_str(&name);
        order.push('\n');
    }
    fs::write(dir.join("modules/order"), order).context("writing the modules' order")?;
    archive(&dir, path)?;
    fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))
}

fn archive(dir: &Path, path: &Path) -> Result<()> {
    let unfinished = path.with_extension(format!("tmp-{}", std::process::id()));
    let file = fs::File::create(&unfinished).context("making the archive")?;
    command::run(
        Command::new("sh")
            .args(["-c", "find . | sort | cpio --quiet -o -H newc"])
            .current_dir(dir)
            .stdout(Stdio::from(file)),
    )?;
    fs::rename(&unfinished, path).with_context(|| format!("publishing {}", path.display()))
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .context("marking a script executable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_name_drops_folder_and_endings() {
        assert_eq!(module_name("kernel/arch/x86/kvm/kvm-amd.ko.xz"), "kvm_amd");
        assert_eq!(module_name("kernel/fs/9p/9p.ko"), "9p");
    }
}

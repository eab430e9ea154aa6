//! The emulated host's kernel: Debian's, with all its modules, unpacked into the cache.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use isopod_guest_image::cache::{CacheError, Key};

use crate::progress::step;
use crate::project;

/// Bumped when the steps below change.
const RECIPE: &str = "1";

/// Packages end in this; the newest is taken.
const SUFFIX: &str = "+deb12-amd64";
const PREFIX: &str = "linux-image-6.12.";

/// What must be loaded, in this order, each after what it depends on: the root file system, the
/// ports, the disk, KVM and tun. Everything else loads itself on first use.
const LOADED: &[&str] = &[
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_console",
    "virtio_blk",
    "virtio_rng",
    "crc32c-intel",
    "crc32c_generic",
    "ext4",
    "kvm-amd",
    "tun",
];

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// The compressed image.
    pub(super) image: PathBuf,
    /// `uname -r`.
    pub(super) release: String,
    /// `lib/modules/<release>` in the cache.
    pub(super) modules: PathBuf,
    /// The modules to load, decompressed, in order.
    pub(super) loaded: Vec<PathBuf>,
}

/// Why there is no kernel.
#[derive(Debug)]
struct Unavailable(anyhow::Error);

impl From<CacheError> for Unavailable {
    fn from(error: CacheError) -> Self {
        Self(error.into())
    }
}

/// Fetches Debian's kernel, or finds it in the cache: the newest one there is good enough.
pub(super) fn get() -> Result<Kernel> {
    let cache = project::cache();
    if let Some(newest) = newest_in(&cache.root().join("lab-kernel")) {
        return open(&newest);
    }
    let package = step("Lab: looking for Debian's kernel package", newest_package)?;
    let key = Key::default()
        .input("recipe", RECIPE)
        .input("package", &package)
        .name();
    let name = format!("{package}.{key}");
    let entry = cache
        .get_or_make("lab-kernel", &name, |draft| {
            step(&format!("Lab: fetching {package}"), || {
                unpack(&package, draft)
            })
            .map_err(Unavailable)
        })
        .map_err(|error| error.0)?;
    open(&entry)
}

/// The finished entry that was published last.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("order").is_file() && !is_hidden(path))
        .max_by_key(|path| path.metadata().and_then(|data| data.modified()).ok())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn newest_package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["search", "--names-only", "^linux-image-6\\.12\\."])
        .output()
        .context("running apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    newest_of(&text).context(
        "no package linux-image-6.12.*+deb12-amd64 is known: run `apt-get update`; it comes with \
         Debian 12's security updates or backports",
    )
}

/// The package with the highest patch level among `apt-cache search` lines.
fn newest_of(listing: &str) -> Option<String> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| {
            let level = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
            Some((level.parse::<u32>().ok()?, name))
        })
        .max()
        .map(|(_, name)| name.to_owned())
}

fn unpack(package: &str, draft: &Path) -> Result<()> {
    let root = draft.join("root");
    std::fs::create_dir(&root)?;
    run(Command::new("apt-get")
        .args(["download", "-qq", package])
        .current_dir(draft))?;
    let archive = std::fs::read_dir(draft)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .arg(&archive)
        .arg(&root))?;
    std::fs::remove_file(&archive)?;
    let release = package.trim_start_matches("linux-image-");
    run(Command::new("depmod")
        .arg("--basedir")
        .arg(&root)
        .arg(release))?;

    let modules = root.join("lib/modules").join(release);
    let dependencies = std::fs::read_to_string(modules.join("modules.dep"))?;
    let folder = draft.join("loaded");
    std::fs::create_dir(&folder)?;
    let mut order = String::new();
    for module in load_order(&dependencies, LOADED) {
        let file = decompress(&modules.join(&module), &folder)?;
        order.push_str(&file);
        order.push('\n');
    }
    std::fs::write(draft.join("order"), order)?;
    Ok(())
}

/// The modules' files in an order in which each comes after what it depends on. A name that
/// `modules.dep` does not list is built into the kernel.
fn load_order(dependencies: &str, names: &[&str]) -> Vec<String> {
    let plain = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.split(".ko").next().unwrap_or(name).replace('-', "_")
    };
    let mut order: Vec<String> = Vec::new();
    for name in names {
        let wanted = name.replace('-', "_");
        let Some((file, needs)) = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| plain(file) == wanted)
        else {
            continue;
        };
        // modules.dep lists a module's dependencies nearest first.
        for path in needs.split_whitespace().rev().chain([file]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    order
}

/// Puts a module into `folder`, decompressed, and returns its file's name.
fn decompress(module: &Path, folder: &Path) -> Result<String> {
    let name = module
        .file_name()
        .context("a module has a name")?
        .to_string_lossy()
        .into_owned();
    let Some(plain) = name.strip_suffix(".xz") else {
        std::fs::copy(module, folder.join(&name))?;
        return Ok(name);
    };
    let output = std::fs::File::create(folder.join(plain))?;
    run(Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(module)
        .stdout(output))?;
    Ok(plain.to_owned())
}

fn open(entry: &Path) -> Result<Kernel> {
    let modules_root = entry.join("root/lib/modules");
    let release = std::fs::read_dir(&modules_root)
        .with_context(|| format!("reading {}", modules_root.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .next()
        .context("the kernel has no modules")?;
    let order = std::fs::read_to_string(entry.join("order"))?;
    Ok(Kernel {
        image: entry.join("root/boot").join(format!("vmlinuz-{release}")),
        modules: modules_root.join(&release),
        loaded: order
            .lines()
            .map(|name| entry.join("loaded").join(name))
            .collect(),
        release,
    })
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("running {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed: {complaint}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_is_found_by_number_not_by_spelling() {
        let listing = "linux-image-6.12.9+deb12-amd64 - x\nlinux-image-6.12.100+deb12-amd64 - x\n\
                       linux-image-6.12.200+deb12-cloud-amd64 - x\nlinux-image-6.12-amd64 - x\n";
        assert_eq!(
            newest_of(listing).unwrap(),
            "linux-image-6.12.100+deb12-amd64"
        );
        assert_eq!(newest_of(""), None);
    }

    #[test]
    fn modules_load_after_what_they_depend_on_and_once() {
        let dependencies = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs.ko.xz\n\
                            kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz\n\
                            kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs.ko.xz\n\
                            kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz\n";
        let order = load_order(dependencies, &["9p", "9pnet_virtio", "built-in", "kvm_amd"]);
        let names: Vec<&str> = order
            .iter()
            .map(|path| path.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "netfs.ko.xz",
                "9pnet.ko.xz",
                "9p.ko.xz",
                "9pnet_virtio.ko.xz",
                "kvm.ko.xz",
                "kvm-amd.ko.xz"
            ]
        );
    }
}

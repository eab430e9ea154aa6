//! What `cargo xtask test e2e` tells the tests, through environment variables.

use std::env;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// Folder of the binaries `isopod` and `isopod-vmm`.
pub const BIN_DIR: &str = "ISOPOD_TEST_BIN_DIR";
/// The guest's kernel.
pub const KERNEL: &str = "ISOPOD_TEST_KERNEL";
/// The agent's image.
pub const AGENT_IMAGE: &str = "ISOPOD_TEST_AGENT_IMAGE";
/// The agent in an initramfs.
pub const INITRAMFS: &str = "ISOPOD_TEST_INITRAMFS";
/// Folder of `crictl`, or of `critest`.
pub const TOOLS: &str = "ISOPOD_TEST_TOOLS";
/// A registry's storage with the test images.
pub const IMAGES: &str = "ISOPOD_TEST_IMAGES";
/// Where the daemons under test keep their data; a real file system with some gigabytes.
pub const DATA: &str = "ISOPOD_TEST_DATA";
/// `1`: guests have a console, printed when a test fails. Slow.
pub const CONSOLE: &str = "ISOPOD_TEST_CONSOLE";
/// `1`: a test that needs KVM fails where there is none, instead of being skipped.
pub const REQUIRE_KVM: &str = "ISOPOD_REQUIRE_KVM";

/// An existing path that a variable holds.
///
/// # Errors
/// The variable is not set, or names something that does not exist.
pub fn path(name: &str) -> Result<PathBuf> {
    let value = env::var_os(name)
        .with_context(|| format!("{name} is not set: run the tests with `cargo xtask test e2e`"))?;
    let path = PathBuf::from(value);
    ensure!(path.exists(), "{name}: {} does not exist", path.display());
    Ok(path)
}

/// One of the project's binaries. Without [`BIN_DIR`], where cargo puts them: beside the folder of
/// the test that runs.
///
/// # Errors
/// It was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = match env::var_os(BIN_DIR) {
        Some(folder) => PathBuf::from(folder),
        None => {
            let test = env::current_exe()?;
            let folder = test.parent().and_then(Path::parent);
            folder.context("the test is in no folder")?.to_owned()
        }
    };
    let path = folder.join(name);
    ensure!(path.exists(), "{} does not exist", path.display());
    Ok(path)
}

/// Where the daemons under test keep their data.
#[must_use]
pub fn data() -> PathBuf {
    env::var_os(DATA).map_or_else(env::temp_dir, PathBuf::from)
}

/// Whether a variable says yes.
#[must_use]
pub fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| value == "1")
}

/// Why a microVM cannot run here, if so.
///
/// A `/dev/kvm` alone does not say that: a paravirtual host has one that cannot run a kernel, and
/// its CPU shows neither `vmx` nor `svm`.
#[must_use]
pub fn missing_kvm() -> Option<String> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(format!("/dev/kvm: {error}"));
    }
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualises = cpu
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        });
    (!virtualises).then(|| "the CPU has neither vmx nor svm".to_owned())
}

/// Whether a test that needs KVM can go on. If not it was [skipped](crate::skip()).
///
/// # Errors
/// There is no KVM and [`REQUIRE_KVM`] says that there must be.
pub fn has_kvm() -> Result<bool> {
    let Some(reason) = missing_kvm() else {
        return Ok(true);
    };
    if is_set(REQUIRE_KVM) {
        bail!("{REQUIRE_KVM}=1, and KVM is not usable: {reason}");
    }
    crate::skip(&format!("needs KVM: {reason}"));
    Ok(false)
}

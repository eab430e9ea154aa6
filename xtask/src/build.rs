//! Builds the project's binaries.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::progress::step;
use crate::project;

/// Static, and with relocations in their packed form: of a position-independent binary of this size
/// they are a tenth in the other (the generic ABI's `SHT_RELR`).
const STATIC_FLAGS: [&str; 2] = [
    "-Ctarget-feature=+crt-static",
    "-Clink-arg=-Wl,-z,pack-relative-relocs",
];

/// Builds the guest's agent: static, because its image has no libraries.
pub(crate) fn agent() -> Result<PathBuf> {
    static_binary("isopod-agent", "guest")
}

/// Builds what a node runs, the daemon and the VMM, and returns the folder that has both.
pub(crate) fn node() -> Result<PathBuf> {
    let vmm = static_binary("isopod-vmm", "release")?;
    let folder = project::target().join("node");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    for binary in [vmm, daemon()?] {
        let name = binary.file_name().context("a binary has a name")?;
        std::fs::copy(&binary, folder.join(name))
            .with_context(|| format!("copying {}", binary.display()))?;
    }
    Ok(folder)
}

/// Builds the daemon alone, and returns its path.
pub(crate) fn daemon() -> Result<PathBuf> {
    release_binary("isopod", "isopod")
}

/// Builds what measures, see `cargo xtask bench`.
pub(crate) fn bench() -> Result<PathBuf> {
    release_binary("isopod-tests", "isopod-bench")
}

/// Builds what measures inside guests, see `cargo xtask bench read` and `fs`.
pub(crate) fn bench_program(name: &str) -> Result<PathBuf> {
    release_binary("isopod-tests", name)
}

/// Builds a program that tests run, and returns its path.
pub(crate) fn test_program(name: &str) -> Result<PathBuf> {
    let folder = project::target();
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--package", "isopod-tests"]);
    cargo.args(["--bin", name]);
    cargo.arg("--target-dir").arg(&folder);
    step(&format!("Building {name}"), || run(&mut cargo))?;
    Ok(folder.join("debug").join(name))
}

/// Builds a release binary that uses this machine's shared libraries, and returns its path.
fn release_binary(package: &str, name: &str) -> Result<PathBuf> {
    let folder = project::target();
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--release", "--package", package]);
    cargo.args(["--bin", name]);
    cargo.arg("--target-dir").arg(&folder);
    step(&format!("Building {name}"), || run(&mut cargo))?;
    Ok(folder.join("release").join(name))
}

/// Builds a static binary of one of the workspace's packages in a profile, and returns its path.
fn static_binary(package: &str, profile: &str) -> Result<PathBuf> {
    // Cargo tells by itself whether there is work, so this always runs.
    let folder = project::target();
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--target", project::TARGET]);
    cargo.args(["--profile", profile, "--package", package]);
    cargo.arg("--target-dir").arg(&folder);
    cargo.env("RUSTFLAGS", STATIC_FLAGS.join(" "));
    // libseccomp-sys links the archive that libseccomp-dev has, not the shared library.
    cargo.env("LIBSECCOMP_LINK_TYPE", "static");
    cargo.env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu");
    step(&format!("Building {package} (static)"), || run(&mut cargo))?;
    Ok(folder.join(project::TARGET).join(profile).join(package))
}

/// Cargo, in the checkout, without what `cargo run` set for this process.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(project::root());
    command
}

/// Runs it to the end; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    ensure!(status.success(), "cargo failed ({status})");
    Ok(())
}

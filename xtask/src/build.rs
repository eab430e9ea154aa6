//! Builds the project's binaries.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::progress::step;
use crate::project;

/// Builds the guest's agent: static, because the initramfs has no libraries.
pub(crate) fn agent() -> Result<PathBuf> {
    static_binary("isopod-agent")
}

/// Builds a static release binary of one of the workspace's packages, and returns its path.
fn static_binary(package: &str) -> Result<PathBuf> {
    // Cargo tells by itself whether there is work, so this always runs.
    let folder = project::target();
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--release", "--target", project::TARGET]);
    cargo.args(["--package", package]);
    cargo.arg("--target-dir").arg(&folder);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    // libseccomp-sys links the archive that libseccomp-dev has, not the shared library.
    cargo.env("LIBSECCOMP_LINK_TYPE", "static");
    cargo.env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu");
    step(&format!("Building {package} (static)"), || run(&mut cargo))?;
    Ok(folder.join(project::TARGET).join("release").join(package))
}

/// Cargo, in the checkout, without what `cargo run` set for this process.
fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(project::root());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    ensure!(status.success(), "cargo failed ({status})");
    Ok(())
}

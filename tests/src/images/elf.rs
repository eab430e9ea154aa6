//! Programs and the shared libraries they load.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::layer::{Entry, LayerWriter, read};

/// The program's shared libraries and its loader, as absolute paths under which the program looks
/// for them. Empty for a static program.
///
/// # Errors
/// `ldd` cannot be run, or a library is missing.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("running ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        if text.contains("not a dynamic executable") || error.contains("not a dynamic executable") {
            return Ok(Vec::new());
        }
        bail!("ldd {}: {}", program.display(), error.trim());
    }
    let mut found = BTreeSet::new();
    for line in text.lines() {
        // `libc.so.6 => /lib/.../libc.so.6 (0x...)`, `/lib64/ld-linux... (0x...)`, the vDSO without
        // a path, `libx.so => not found`.
        if line.contains("not found") {
            bail!("{}: {}", program.display(), line.trim());
        }
        if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
            found.insert(PathBuf::from(path));
        }
    }
    Ok(found.into_iter().collect())
}

/// Adds the program under its own path, and its libraries.
///
/// # Errors
/// A file cannot be read, or the layer not written.
pub fn add(layer: &mut LayerWriter, program: &Path) -> Result<()> {
    add_as(layer, program, program, 0o755)
}

/// Adds the program under another path and with other permissions, and its libraries.
///
/// # Errors
/// A file cannot be read, or the layer not written.
pub fn add_as(layer: &mut LayerWriter, program: &Path, path: &Path, mode: u32) -> Result<()> {
    for library in libraries(program)? {
        layer.add(&Entry::file(inside(&library)?, read(&library)?).mode(0o755))?;
    }
    layer.add(&Entry::file(inside(path)?, read(program)?).mode(mode))
}

fn inside(path: &Path) -> Result<&Path> {
    path.strip_prefix("/")
        .context("paths of programs are absolute")
}

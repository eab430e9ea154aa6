//! Where expensive things are kept between runs.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result};

/// `$XDG_CACHE_HOME/isopod`, by default `~/.cache/isopod`; made if it is not there.
pub(crate) fn dir() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let dir = base.join("isopod");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

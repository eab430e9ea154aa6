//! Builds the test images unless the cache has them, and prints the registry storage they are in.
//!
//! `isopod-test-images CACHE`

use std::path::PathBuf;

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let cache = std::env::args_os()
        .nth(1)
        .context("usage: isopod-test-images CACHE")?;
    let storage = isopod_tests::images::build(&PathBuf::from(cache))?;
    println!("{}", storage.display());
    Ok(())
}

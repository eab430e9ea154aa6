//! Builds the test images unless the cache has them, and prints the registry storage they are in.
//!
//! `isopod-test-images CACHE`, or for critest's images `isopod-test-images CACHE BUSYBOX NONEWPRIVS`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use isopod_tests::images::{self, critest};

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let storage = match arguments.as_slice() {
        [cache] => images::build(cache)?,
        [cache, busybox, nonewprivs] => {
            let programs = critest::Programs {
                busybox: busybox.clone(),
                nonewprivs: nonewprivs.clone(),
            };
            critest::build(cache, &programs)?
        }
        _ => bail!("usage: isopod-test-images CACHE [BUSYBOX NONEWPRIVS]"),
    };
    println!("{}", storage.display());
    Ok(())
}

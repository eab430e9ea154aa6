//! `perl:1`: Debian's perl over busybox, without its modules: for tests of system calls that no
//! shell makes.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::busybox;
use super::elf;
use super::layer::Compression;
use super::oci::{ImageDigests, ImageWriter};

/// Debian's `perl-base`.
const PERL: &str = "/usr/bin/perl";

/// The files of the host that this image is made from.
///
/// # Errors
/// perl-base is not installed, or a library of it is missing.
pub fn inputs() -> Result<Vec<PathBuf>> {
    let perl = PathBuf::from(PERL);
    ensure!(
        perl.exists(),
        "{PERL} is missing: apt-get install perl-base"
    );
    let mut inputs = elf::libraries(&perl)?;
    inputs.push(perl);
    Ok(inputs)
}

/// Writes the image. Its first layer is `busybox:1`'s.
///
/// # Errors
/// A file cannot be read; writing failed.
pub fn write(folder: &Path) -> Result<ImageDigests> {
    let mut image = ImageWriter::new(folder)?;
    image.layer(Compression::Gzip, busybox::base)?;
    image.layer(Compression::Zstd, |layer| elf::add(layer, Path::new(PERL)))?;
    image.finish(&busybox::config(&[PERL]))
}

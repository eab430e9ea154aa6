//! `layers:1`: everything that is hard about layers, in one image under `/data`.
//!
//! Four layers over busybox, each in another compression. What the tree must look like afterwards
//! is written down in the end-to-end test that reads it from inside a container.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sha2::{Digest as _, Sha256};

use super::busybox;
use super::elf;
use super::layer::{Compression, Entry, LayerWriter};
use super::oci::{ImageDigests, ImageWriter};

/// Debian's `attr`, to read extended attributes inside the container.
const GETFATTR: &str = "/usr/bin/getfattr";

/// Length of `/data/big` in bytes.
pub const BIG_LEN: u64 = 300 * 1024 * 1024;

/// Number of files in `/data/many`: more than a directory block holds.
pub const MANY: usize = 1500;

/// `security.capability` of `/data/capable`: version 2, effective, `CAP_NET_BIND_SERVICE`
/// (linux/capability.h, `struct vfs_cap_data`).
pub const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The files of the host that this image is made from.
///
/// # Errors
/// attr is not installed.
pub fn inputs() -> Result<Vec<PathBuf>> {
    let getfattr = PathBuf::from(GETFATTR);
    ensure!(
        getfattr.exists(),
        "{GETFATTR} is missing: apt-get install attr"
    );
    let mut inputs = elf::libraries(&getfattr)?;
    inputs.push(getfattr);
    Ok(inputs)
}

/// Writes the image. Its first layer is `busybox:1`'s.
///
/// # Errors
/// A file cannot be read; writing failed.
pub fn write(folder: &Path) -> Result<ImageDigests> {
    let mut image = ImageWriter::new(folder)?;
    image.layer(Compression::Gzip, busybox::base)?;
    image.layer(Compression::Gzip, first)?;
    image.layer(Compression::Zstd, second)?;
    image.layer(Compression::None, third)?;
    image.layer(Compression::Gzip, |layer| {
        let entry = Entry::file("data/big", []);
        layer.add_from(&entry, BIG_LEN, BigFile::default())
    })?;
    image.finish(&busybox::config(&["/bin/sh"]))
}

/// A name of 120 bytes: over the 100 of a tar header.
#[must_use]
pub fn long_name() -> PathBuf {
    format!("data/{}", "n".repeat(120)).into()
}

/// A path of 420 bytes: over the 255 of a ustar header.
#[must_use]
pub fn long_path() -> PathBuf {
    format!("data/{}/{}/leaf", "d".repeat(200), "e".repeat(205)).into()
}

/// A name that is not UTF-8.
#[must_use]
pub fn odd_name() -> PathBuf {
    Path::new("data").join(OsStr::from_bytes(b"odd-\xff\xfe-name"))
}

fn first(layer: &mut LayerWriter) -> Result<()> {
    elf::add(layer, Path::new(GETFATTR))?;
    layer.add(&Entry::directory("data"))?;
    plain(layer)?;
    changed_above(layer)?;
    attributes(layer)?;
    layer.add(&Entry::file(long_name(), "long name\n"))?;
    let long = long_path();
    for directory in [long.parent().and_then(Path::parent), long.parent()]
        .into_iter()
        .flatten()
    {
        layer.add(&Entry::directory(directory))?;
    }
    layer.add(&Entry::file(&long, "long path\n").pax_path())?;
    layer.add(&Entry::file(odd_name(), "odd name\n"))?;
    layer.add(&Entry::directory("data/many"))?;
    for number in 0..MANY {
        let path = format!("data/many/file-{number:04}");
        layer.add(&Entry::file(path, format!("{number}\n")))?;
    }
    Ok(())
}

/// Files of every type and mode.
fn plain(layer: &mut LayerWriter) -> Result<()> {
    for entry in [
        Entry::file("data/plain", "plain\n"),
        Entry::file("data/empty", ""),
        Entry::file("data/setuid", "#!/bin/sh\nid\n").mode(0o4755),
        Entry::file("data/setgid", "#!/bin/sh\nid\n").mode(0o2755),
        Entry::directory("data/sticky").mode(0o1777),
        Entry::file("data/owned", "owned\n")
            .owner(70_000, 70_001)
            .mode(0o640),
        // Over the seven octal digits of a tar header.
        Entry::file("data/owned-far", "owned\n").owner(3_000_000, 3_000_001),
        Entry::symlink("data/symlink", "plain"),
        Entry::symlink("data/dangling", "nowhere/at/all"),
        Entry::symlink("data/absolute", "/data/plain"),
        Entry::file("data/link-a", "hard\n"),
        Entry::hard_link("data/link-b", "data/link-a"),
        Entry::character("data/null", 1, 3),
        Entry::block("data/block", 7, 0),
        Entry::fifo("data/fifo"),
        Entry::file("data/old", "old\n").mtime(1),
        Entry::file("data/precise", "precise\n")
            .mtime(1_234_567_890)
            .mtime_nanos(123_456_789),
        Entry::file("data/future", "future\n").mtime(4_102_444_800),
    ] {
        layer.add(&entry)?;
    }
    Ok(())
}

/// What the layers above remove, replace or link to.
fn changed_above(layer: &mut LayerWriter) -> Result<()> {
    for entry in [
        Entry::file("data/deleted", "deleted\n"),
        Entry::directory("data/deleted-dir"),
        Entry::file("data/deleted-dir/inner", "inner\n"),
        Entry::file("data/added-again", "first\n"),
        Entry::directory("data/opaque"),
        Entry::file("data/opaque/old", "old\n"),
        Entry::directory("data/opaque/sub"),
        Entry::file("data/opaque/sub/old", "old\n"),
        Entry::directory("data/opaque-late"),
        Entry::file("data/opaque-late/old", "old\n"),
        Entry::directory("data/was-dir"),
        Entry::file("data/was-dir/inner", "inner\n"),
        Entry::file("data/was-file", "was a file\n"),
        Entry::directory("data/mode-changes"),
        Entry::file("data/mode-changes/kept", "kept\n"),
        Entry::file("data/below", "linked from above\n"),
        Entry::file("data/half-a", "two names, one removed above\n"),
        Entry::hard_link("data/half-b", "data/half-a"),
    ] {
        layer.add(&entry)?;
    }
    Ok(())
}

fn attributes(layer: &mut LayerWriter) -> Result<()> {
    for entry in [
        Entry::file("data/capable", "#!/bin/sh\n")
            .mode(0o755)
            .xattr("security.capability", CAPABILITY),
        Entry::file("data/attributes", "attributes\n")
            .xattr("user.empty", [])
            .xattr("user.isopod", *b"value")
            .xattr("user.long", vec![b'x'; 1000]),
        Entry::directory("data/attributes-dir").xattr("user.isopod", *b"directory"),
    ] {
        layer.add(&entry)?;
    }
    Ok(())
}

fn second(layer: &mut LayerWriter) -> Result<()> {
    for entry in [
        Entry::whiteout("data/deleted"),
        Entry::whiteout("data/deleted-dir"),
        // A whiteout hides what is below, never what its own layer brings.
        Entry::file("data/added-again", "second\n"),
        Entry::whiteout("data/added-again"),
        Entry::opaque("data/opaque"),
        Entry::file("data/opaque/new", "new\n"),
        Entry::file("data/was-dir", "now a file\n"),
        Entry::directory("data/was-file"),
        Entry::file("data/was-file/inner", "now a directory\n"),
        Entry::directory("data/mode-changes")
            .mode(0o700)
            .owner(1000, 1000),
        Entry::hard_link("data/below-link", "data/below"),
        Entry::whiteout("data/half-a"),
        Entry::file("data/gone-in-third", "gone\n"),
    ] {
        layer.add(&entry)?;
    }
    Ok(())
}

fn third(layer: &mut LayerWriter) -> Result<()> {
    for entry in [
        Entry::whiteout("data/gone-in-third"),
        // The marker may come after what the layer puts into the directory.
        Entry::file("data/opaque-late/new", "new\n"),
        Entry::opaque("data/opaque-late"),
        // No entries for the directories on the way.
        Entry::file("data/implied/parent/file", "implied\n"),
        Entry::whiteout("data/never-existed"),
        Entry::file("data/plain", "plain, replaced\n").mode(0o600),
    ] {
        layer.add(&entry)?;
    }
    Ok(())
}

/// Digest of `/data/big`, in hex.
#[must_use]
pub fn big_file_digest() -> String {
    let mut hash = Sha256::new();
    let mut file = BigFile::default();
    let mut block = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = file.read(&mut block) {
        hash.update(&block[..len]);
    }
    hex::encode(hash.finalize())
}

/// `/data/big`: every 4 KiB block is different (a block out of its place changes the digest) and
/// yet most of it repeats, so that it costs little to store and to send.
#[derive(Debug, Default)]
struct BigFile {
    block: u64,
    rest: Vec<u8>,
}

const BLOCK: usize = 4096;

impl Read for BigFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() && self.block * (BLOCK as u64) < BIG_LEN {
            self.rest = big_block(self.block);
            self.block += 1;
        }
        let len = self.rest.len().min(out.len());
        out[..len].copy_from_slice(&self.rest[..len]);
        self.rest.drain(..len);
        Ok(len)
    }
}

/// The block's number, then a pattern without zeros.
fn big_block(number: u64) -> Vec<u8> {
    let pattern = (0_usize..).map(|index| (index * 7 + index / 256).to_le_bytes()[0] | 1);
    number
        .to_le_bytes()
        .into_iter()
        .chain(pattern)
        .take(BLOCK)
        .collect()
}

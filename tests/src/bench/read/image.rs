//! The tree that is read: an image at a registry, and the same on ext4.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::images::layer::{Compression, Entry, LayerWriter};
use crate::images::oci::{ImageWriter, blob_path};
use crate::images::{elf, storage};

/// The image's name at a registry.
pub(super) const NAME: &str = "read";

/// Where the reader, the tree and the large file are, in the image and on ext4.
pub(super) const READER: &str = "/reader";
pub(super) const TREE: &str = "/tree";
pub(super) const LARGE: &str = "/large";

/// The ext4 beside the registry's storage, and its size: half of it stays free.
pub(super) const EXT4: &str = "tree.ext4";
const EXT4_BYTES: u64 = 96 << 20;

/// Layers of small files, and bytes of files in each: as the pulled image of `bench pull`, smaller.
const LAYERS: u64 = 5;
const LAYER_BYTES: u64 = 2 << 20;

/// Bytes of all small files.
pub(super) const TREE_BYTES: u64 = LAYERS * LAYER_BYTES;

/// Bytes of the large file.
const LARGE_BYTES: u64 = 32 << 20;

/// Files in one folder, and bytes of the largest.
const FILES_PER_FOLDER: u64 = 50;
const FILE_MAX: u64 = 20_000;

/// A registry's storage with the image, and ext4 with the same tree, from the cache if they are there.
///
/// # Errors
/// skopeo, docker-registry, tar or mkfs.ext4 is missing, or fails.
pub fn build(cache: &Path, reader: &Path) -> Result<PathBuf> {
    let program = std::fs::read(reader).with_context(|| format!("reading {}", reader.display()))?;
    let mut key = Sha256::new();
    key.update(include_str!("image.rs"));
    key.update(&program);
    let key = hex::encode(&key.finalize()[..8]);
    let place = cache.join(format!("bench-read-{key}"));
    if place.join("complete").exists() {
        return Ok(place);
    }
    eprintln!("making the image, once");
    std::fs::create_dir_all(cache)?;
    let work = tempfile::Builder::new()
        .prefix("bench-read-")
        .tempdir_in(cache)?;
    let layouts = work.path().join("layouts");
    let layout = layouts.join(NAME);
    let mut image = ImageWriter::new(&layout)?;
    // Not compressed: pulling it is not measured here.
    image.layer(Compression::None, |layer| {
        // Where a peer mounts it, as a container's runtime does.
        layer.add(&Entry::directory("proc"))?;
        elf::add_as(layer, reader, Path::new(READER), 0o755)
    })?;
    for number in 0..LAYERS {
        image.layer(Compression::None, |layer| small_files(layer, number))?;
    }
    image.layer(Compression::None, |layer| {
        let entry = Entry::file(&LARGE[1..], []);
        layer.add_from(&entry, LARGE_BYTES, Noise(u64::MAX).take(LARGE_BYTES))
    })?;
    let digests = image.finish(&json!({}))?;
    let storage = work.path().join("storage");
    storage::fill(&storage, &layouts, &[NAME])?;

    let tree = work.path().join("unpacked");
    std::fs::create_dir(&tree)?;
    for layer in &digests.layers {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&tree).arg("-xf");
        run(tar.arg(blob_path(&layout, &layer.digest)))?;
    }
    let ext4 = storage.join(EXT4);
    File::create(&ext4)?.set_len(EXT4_BYTES)?;
    let mut mkfs = Command::new("mkfs.ext4");
    run(mkfs.args(["-q", "-d"]).arg(&tree).arg(&ext4))?;
    storage::keep(&storage, &place)?;
    Ok(place)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_owned();
    let status = command
        .status()
        .with_context(|| format!("starting {}", program.display()))?;
    ensure!(
        status.success(),
        "{} ended with {status}",
        program.display()
    );
    Ok(())
}

/// Files of 0 to 20 kB, 10 on average.
fn small_files(layer: &mut LayerWriter, seed: u64) -> Result<()> {
    let root = format!("{}/l{seed}", &TREE[1..]);
    layer.add(&Entry::directory(&TREE[1..]))?;
    layer.add(&Entry::directory(&root))?;
    let mut noise = Noise(seed + 1);
    let (mut left, mut number) = (LAYER_BYTES, 0);
    while left > 0 {
        let folder = format!("{root}/d{}", number / FILES_PER_FOLDER);
        if number % FILES_PER_FOLDER == 0 {
            layer.add(&Entry::directory(&folder))?;
        }
        let length = ((noise.next() >> 40) % FILE_MAX).min(left);
        let entry = Entry::file(format!("{folder}/f{number}"), []);
        layer.add_from(&entry, length, (&mut noise).take(length))?;
        left -= length;
        number += 1;
    }
    Ok(())
}

/// Bytes without end that no program makes smaller: xorshift64*, as Vigna has it.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl std::io::Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for part in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
        Ok(buffer.len())
    }
}

//! The images that are pulled: generated, so that they are the same everywhere.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::images::layer::{Compression, Entry, LayerWriter};
use crate::images::oci::ImageWriter;
use crate::images::storage;

/// Images of [`Case::Shared`], and how many layers all of them have in common.
const SHARED_IMAGES: u64 = 20;
const COMMON_LAYERS: u64 = 3;

/// Files in one folder.
const FILES_PER_FOLDER: u64 = 50;

/// What is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    /// Five layers of small files, as language run-times are.
    SmallFiles,
    /// Few files of hundreds of megabytes, as models are.
    LargeFiles,
    /// Twenty images with three layers in common and one of their own.
    Shared,
}

impl Case {
    /// The images' names at a registry.
    pub(super) fn images(self, host: &str) -> Vec<String> {
        let names = match self {
            Self::SmallFiles => vec!["small".to_owned()],
            Self::LargeFiles => vec!["large".to_owned()],
            Self::Shared => shared_names(),
        };
        let whole = names.iter().map(|name| format!("{host}/{name}:1"));
        whole.collect()
    }
}

fn shared_names() -> Vec<String> {
    (0..SHARED_IMAGES)
        .map(|number| format!("shared{number}"))
        .collect()
}

/// A registry's storage with all images, from the cache if it is there.
pub(super) fn build(cache: &Path) -> Result<PathBuf> {
    let key = hex::encode(&Sha256::digest(include_str!("images.rs"))[..8]);
    let place = cache.join(format!("bench-images-{key}"));
    if place.join("complete").exists() {
        return Ok(place);
    }
    eprintln!("making the images, once");
    std::fs::create_dir_all(cache)?;
    let work = tempfile::Builder::new()
        .prefix("bench-images-")
        .tempdir_in(cache)?;
    let layouts = work.path().join("layouts");
    write(&layouts.join("small"), 5, |number, layer| {
        small_files(layer, number, 40 << 20)
    })?;
    write(&layouts.join("large"), 2, large_files)?;
    for (own, name) in (100..).zip(shared_names()) {
        write(
            &layouts.join(name),
            COMMON_LAYERS + 1,
            |number, layer| match number < COMMON_LAYERS {
                true => small_files(layer, 50 + number, 20 << 20),
                false => small_files(layer, own, 2 << 20),
            },
        )?;
    }
    let mut names = shared_names();
    names.extend(["small".to_owned(), "large".to_owned()]);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let storage = work.path().join("storage");
    storage::fill(&storage, &layouts, &names)?;
    storage::keep(&storage, &place)?;
    Ok(place)
}

fn write(
    folder: &Path,
    layers: u64,
    fill: impl Fn(u64, &mut LayerWriter) -> Result<()>,
) -> Result<()> {
    let mut image = ImageWriter::new(folder)?;
    for number in 0..layers {
        image.layer(Compression::Gzip, |layer| fill(number, layer))?;
    }
    image.finish(&json!({}))?;
    Ok(())
}

/// Files of 0 to 20 kB, 10 on average, until there are so many bytes.
fn small_files(layer: &mut LayerWriter, seed: u64, bytes: u64) -> Result<()> {
    let mut text = Text::new(seed + 1);
    let (mut left, mut number) = (bytes, 0);
    layer.add(&Entry::directory(format!("l{seed}")))?;
    while left > 0 {
        let folder = number / FILES_PER_FOLDER;
        if number % FILES_PER_FOLDER == 0 {
            layer.add(&Entry::directory(format!("l{seed}/d{folder}")))?;
        }
        let length = (text.next() >> 40) % 20_000;
        let length = length.min(left);
        let entry = Entry::file(format!("l{seed}/d{folder}/f{number}"), []);
        layer.add_from(&entry, length, (&mut text).take(length))?;
        left -= length.max(1).min(left);
        number += 1;
    }
    Ok(())
}

/// Two files of 256 MB in each of two layers: half of it like text, half like noise.
fn large_files(number: u64, layer: &mut LayerWriter) -> Result<()> {
    const LENGTH: u64 = 256 << 20;
    for part in 0..2 {
        let seed = 1000 + number * 2 + part;
        let entry = Entry::file(format!("large{number}-{part}"), []);
        let text = Text::new(seed).take(LENGTH / 2);
        let noise = Noise(Text::new(seed + 500)).take(LENGTH / 2);
        layer.add_from(&entry, LENGTH, text.chain(noise))?;
    }
    Ok(())
}

/// Random words, which compress about as well as programs' texts do.
struct Text {
    state: u64,
    pending: Vec<u8>,
}

impl Text {
    fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            pending: Vec::new(),
        }
    }

    /// xorshift64*, as Vigna has it.
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One of 4096 words.
    fn word(&mut self) {
        let mut letters = (self.next() >> 52).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for _ in 0..3 + letters % 7 {
            letters = letters.rotate_left(7).wrapping_mul(31);
            let letter = u8::try_from(letters % 26).unwrap_or(0);
            self.pending.push(b'a' + letter);
        }
        self.pending.push(if letters.is_multiple_of(11) {
            b'\n'
        } else {
            b' '
        });
    }
}

impl Read for Text {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(32 << 10);
        while self.pending.len() < length {
            self.word();
        }
        let rest = self.pending.split_off(length);
        buffer[..length].copy_from_slice(&self.pending);
        self.pending = rest;
        Ok(length)
    }
}

/// What no program makes smaller.
struct Noise(Text);

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for part in buffer.chunks_mut(8) {
            let bytes = self.0.next().to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
        Ok(buffer.len())
    }
}

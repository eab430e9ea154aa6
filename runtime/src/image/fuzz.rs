//! What the targets in `fuzz/` call: everything here that reads what nobody vouches for.

use std::fs::File;
use std::io::Cursor;

use super::digest::Digest;
use super::erofs;
use super::layer::{DATA, INDEX, IndexReader, IngestLimits, RECIPE, Recipe, ingest};
use super::manifest::{Document, Leads};
use super::reference::Reference;
use super::tar::Reader;
use super::tree::Tree;

/// Takes `data`, less its first byte, in as a layer's blob. Whatever it is, it is refused, or it
/// becomes a layer that can be read back, merged upon itself and written as EROFS, and given away
/// again byte for byte. If the first byte is odd, headers are given right checksums first: nobody
/// guesses those.
pub fn layer(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else {
        return;
    };
    let repaired = match first % 2 {
        0 => data.to_vec(),
        _ => with_checksums(data),
    };
    let data = repaired.as_slice();
    // Reading entries alone is faster, and gets further into the format.
    let mut tar = Reader::new(Cursor::new(data));
    while let Ok(Some(_)) = tar.next_entry() {}

    let folder = tempfile::tempdir().expect("a folder for the layer");
    let Ok(ingested) = ingest(data, folder.path(), IngestLimits::from_mib(16)) else {
        return;
    };
    let open = |name: &str| File::open(folder.path().join(name)).expect("a file of the layer");
    let recipe = Recipe::new(open(RECIPE), open(DATA)).expect("our own recipe");
    let (mut archive, length) = (Vec::new(), recipe.bytes);
    recipe.write(&mut archive).expect("our own recipe");
    assert_eq!(archive.len() as u64, length);
    assert_eq!(Digest::of(&archive), ingested.diff_id);

    let mut tree = Tree::new();
    for number in 0..2 {
        let mut index = IndexReader::new(open(INDEX)).expect("our own index");
        while let Some(record) = index.next_record().expect("our own index") {
            if tree.apply(number, record).is_err() {
                return;
            }
        }
        assert_eq!(index.blocks(), Some(ingested.blocks));
    }
    let layer = erofs::Layer {
        diff_id: ingested.diff_id,
        blocks: ingested.blocks,
    };
    let metadata = tempfile::tempfile().expect("a file for the metadata");
    let written = metadata.try_clone().expect("a descriptor");
    let composition = erofs::write(&tree, &[layer, layer], written).expect("a small disk");
    let length = metadata.metadata().expect("its length").len();
    assert_eq!(length, u64::from(composition.metadata_blocks) * 4096);
}

/// Reads `data` as a manifest and, after its first NUL, a configuration.
pub fn manifest(data: &[u8]) {
    let end = data.iter().position(|&byte| byte == 0);
    let (manifest, config) = data.split_at(end.unwrap_or(data.len()));
    let config = config.get(1..).unwrap_or_default();
    if let Ok(Leads::Image(manifest)) = Document::parse(manifest).and_then(Document::leads) {
        // What is refused and what is not, both are fine.
        let _ = manifest.layers(config);
    }
}

/// Reads `data` as a reference. What it is normalised to is a reference, and the same one.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(reference) = Reference::parse(text) {
        let again = Reference::parse(&reference.to_string()).expect("normalised");
        assert_eq!(again, reference);
    }
}

/// Every block with the checksum of a header, whatever it is.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let mut repaired = data.to_vec();
    for block in repaired.chunks_exact_mut(512) {
        if block.iter().any(|&byte| byte != 0) {
            block[148..156].copy_from_slice(b"        ");
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    repaired
}

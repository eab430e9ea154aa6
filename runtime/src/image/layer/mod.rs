//! A layer in the store: its files' data, and an index of everything else.
//!
//! A layer is one archive, walked once and never unpacked. What it becomes is a directory, named by
//! the digest of the uncompressed archive (its *diff id*) and shared by all images that have it:
//!
//! - `data`, the *data blob*: the contents of the regular files, one after the other, each at a
//!   multiple of 4096 bytes. A sparse file's holes are holes of this file.
//! - `recipe`: what else the archive consists of, to make it again (`recipe.rs`).
//! - `index`: what the archive says, entry by entry and in its order, in our own compact form
//!   (`index.rs`), with the place of each file's data.
//!
//! Nothing is decided here about how layers go on top of one another: that a later entry replaces an
//! earlier one, what a whiteout hides, where a symbolic link on the way leads. The index is replayed
//! on a [`Tree`](super::tree::Tree) for that, below its lower layers' and above.
//!
//! Runs on blocking threads, one per layer.

mod decompress;
mod index;
mod ingest;
mod path;
mod recipe;

pub(crate) use self::decompress::Decompressor;
pub(crate) use self::index::{Change, Damage, IndexReader, Record};
pub(crate) use self::ingest::{IngestLimits, Ingested, LayerError, ingest};
pub(crate) use self::path::Components;
pub(crate) use self::recipe::Recipe;

/// Name of the data blob in a layer's directory.
pub(crate) const DATA: &str = "data";

/// Name of the index in a layer's directory.
pub(crate) const INDEX: &str = "index";

/// Name of the recipe in a layer's directory.
pub(crate) const RECIPE: &str = "recipe";

/// Every file of a layer's directory.
pub(crate) const FILES: [&str; 3] = [DATA, INDEX, RECIPE];

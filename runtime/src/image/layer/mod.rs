//! A layer in the store: its files' data, and an index of everything else.
//!
//! A layer is one archive, walked once and never unpacked. What it becomes is a directory, named by
//! the digest of the uncompressed archive (its *diff id*) and shared by all images that have it:
//!
//! - `data`, the *data blob*: the contents of the regular files, one after the other, each at a
//!   multiple of 4096 bytes. A sparse file's holes are holes of this file.
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

pub(crate) use self::index::{Change, Damage, IndexReader, Record};
pub(crate) use self::ingest::{IngestLimits, Ingested, LayerError, ingest};
pub(crate) use self::path::Components;

/// Name of the data blob in a layer's directory.
pub(crate) const DATA: &str = "data";

/// Name of the index in a layer's directory.
pub(crate) const INDEX: &str = "index";

//! What can go wrong with an image.

use std::io;
use std::path::{Path, PathBuf};

use super::reference::Reference;

/// Why an image operation failed. Every variant is one row of the gRPC table (`cri`), so what a
/// caller could act on differently is a variant of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The name is not an image reference. INVALID_ARGUMENT.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference {
        /// As it was given.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No image of this name or id is in the store. NOT_FOUND.
    #[error("image {reference:?} is not in the store")]
    NotFound {
        /// As it was given.
        reference: String,
    },
    /// No endpoint has the image, as far as they can be reached. NOT_FOUND.
    #[error("image {image}: not in the registry: {reason}")]
    NotInRegistry {
        /// The normalised reference.
        image: String,
        /// What each endpoint answered.
        reason: String,
    },
    /// The image exists, but not for this machine. NOT_FOUND.
    #[error("image {image}: no manifest for linux/amd64")]
    NoPlatform {
        /// The normalised reference.
        image: String,
    },
    /// The registry wants other credentials, or knows these and refuses. PERMISSION_DENIED.
    #[error("image {image}: access denied: {reason}")]
    Denied {
        /// The normalised reference.
        image: String,
        /// What each endpoint answered.
        reason: String,
    },
    /// The registry cannot be reached, answers with an error of its own, or stops in the middle,
    /// and trying again did not help. UNAVAILABLE.
    #[error("image {image}: registry unavailable: {reason}")]
    Unavailable {
        /// The normalised reference.
        image: String,
        /// What each endpoint answered.
        reason: String,
    },
    /// Bytes do not have the digest under which they were asked for. DATA_LOSS.
    #[error("image {image}: {object} does not match its digest: {reason}")]
    Corrupt {
        /// The normalised reference.
        image: String,
        /// `manifest`, `config`, or `layer sha256:...`.
        object: String,
        /// What was expected and what came.
        reason: String,
    },
    /// The bytes are what they should be, and not an image that can be run: malformed, unsupported
    /// or hostile. FAILED_PRECONDITION.
    #[error("image {image}: {object} is refused: {reason}")]
    Refused {
        /// The normalised reference.
        image: String,
        /// `manifest`, `config`, or `layer sha256:...`.
        object: String,
        /// Why.
        reason: String,
    },
    /// Larger than a limit, and so perhaps a bomb. RESOURCE_EXHAUSTED.
    #[error("image {image}: {object} is too large: {reason}")]
    TooLarge {
        /// The normalised reference.
        image: String,
        /// `manifest`, `config`, or `layer sha256:...`.
        object: String,
        /// Which limit, and its value.
        reason: String,
    },
    /// The store's filesystem is full. RESOURCE_EXHAUSTED.
    #[error("image {image}: no space left in {}", path.display())]
    DiskFull {
        /// The normalised reference.
        image: String,
        /// What was being written.
        path: PathBuf,
    },
    /// The store's own files cannot be read or written. INTERNAL.
    #[error("image store: {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A record or an index in the store does not make sense. INTERNAL.
    #[error("image store: {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// An error and its causes in one line, for where they become somebody else's reason.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some crates repeat their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl ImageError {
    /// For `map_err` on an operation of the filesystem.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// A full disk is the image's error, whatever was being written.
    pub(super) fn in_pull_of(self, image: &Reference) -> Self {
        match self {
            Self::Io { path, source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                Self::DiskFull {
                    image: image.to_string(),
                    path,
                }
            }
            other => other,
        }
    }
}

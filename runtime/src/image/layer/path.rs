//! Paths of entries, relative to the image's root.

use super::LayerError;
use crate::image::limits::{MAX_NAME_BYTES, MAX_PATH_BYTES};

/// The components of a normalised path.
pub(crate) type Components<'a> = std::slice::Split<'a, u8, fn(&u8) -> bool>;

/// Normalises a path: no leading, doubled or trailing slashes, no `.`; empty is the root. An
/// absolute path is relative to the image's root like any other.
///
/// # Errors
/// `..` is refused, although there is nothing outside the image that it could lead to: no honest
/// archive has it, and two readings of one archive are one too many. So is what Linux could not
/// look up.
pub(super) fn normalise(raw: &[u8]) -> Result<Vec<u8>, LayerError> {
    let refuse = |reason| {
        // Enough to find it by.
        let shown = raw[..raw.len().min(256)].escape_ascii().to_string();
        Err(LayerError::Path {
            path: shown,
            reason,
        })
    };
    let mut path = Vec::with_capacity(raw.len());
    for name in raw.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => continue,
            b".." => return refuse("it contains \"..\""),
            _ => {}
        }
        if name.len() > MAX_NAME_BYTES {
            return refuse("a name in it is longer than 255 bytes");
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    if path.len() > MAX_PATH_BYTES {
        return refuse("it is longer than 4095 bytes");
    }
    Ok(path)
}

/// The directory and the name in it; `None` for the root.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_the_root_however_they_are_written() {
        for raw in ["a/b", "/a/b", "./a/b", "a//b/", "//a/./b/."] {
            assert_eq!(
                normalise(raw.as_bytes()).expect("a good path"),
                b"a/b",
                "{raw}"
            );
        }
        for raw in ["", ".", "/", "./", "//."] {
            assert_eq!(normalise(raw.as_bytes()).expect("the root"), b"", "{raw}");
        }
    }

    #[test]
    fn paths_that_climb_or_are_too_long_are_refused() {
        let long_name = "n".repeat(256);
        let long_path = "d/".repeat(2048) + "f";
        for raw in [
            "..",
            "a/../b",
            "../etc/passwd",
            "/..",
            &long_name,
            &long_path,
        ] {
            assert!(normalise(raw.as_bytes()).is_err(), "{raw}");
        }
        normalise("n".repeat(255).as_bytes()).expect("the longest name");
    }
}

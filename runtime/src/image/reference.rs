//! Image references: what people and pods write, and what it stands for.
//!
//! The grammar and the short forms are Docker's (`distribution/reference`), which containerd and the
//! kubelet share: `busybox` is `docker.io/library/busybox:latest`; of a tag and a digest only the
//! digest counts.

use std::fmt;

use super::ImageError;
use super::digest::Digest;

/// The longest registry and repository together.
const MAX_NAME: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;

const DOCKER_HUB: &str = "docker.io";

/// Which of a repository's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Version {
    /// The one that bears this tag today.
    Tag(String),
    /// The one whose manifest, or index of manifests, has this digest.
    Digest(Digest),
}

/// A normalised reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `host` or `host:port`.
    pub(crate) registry: String,
    /// Path in the registry.
    pub(crate) repository: String,
    /// Tag or digest.
    pub(crate) version: Version,
}

impl Reference {
    /// Parses and normalises.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`] says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, ImageError> {
        let refuse = |reason| ImageError::InvalidReference {
            reference: text.to_owned(),
            reason,
        };
        if text.is_empty() {
            return Err(refuse("it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse();
                let digest = digest.map_err(|_invalid| {
                    refuse("its digest is not sha256: and 64 lower-case hexadecimal digits")
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it, a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(refuse("its tag is malformed"));
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(&registry) {
            return Err(refuse(
                "its registry is not a host name, with or without a port",
            ));
        }
        if !repository.split('/').all(is_path_component) {
            return Err(refuse(
                "its repository may have lower-case letters and digits, and single separators \
                 between them",
            ));
        }
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(refuse("its name is longer than 255 characters"));
        }
        // Docker refuses these: they would be taken for ids.
        if Digest::from_hex(name).is_ok() {
            return Err(refuse("its name is 64 hexadecimal digits, like an id"));
        }
        let version = digest.map_or_else(
            || Version::Tag(tag.unwrap_or("latest").to_owned()),
            Version::Digest,
        );
        Ok(Self {
            registry,
            repository,
            version,
        })
    }

    /// `registry/repository`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository's image of this digest.
    pub(crate) fn with_digest(&self, digest: Digest) -> Self {
        Self {
            version: Version::Digest(digest),
            ..self.clone()
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

/// What stands before the first slash is a registry if it looks like a host.
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, name),
    };
    let registry = if registry == "index.docker.io" {
        DOCKER_HUB
    } else {
        registry
    };
    let repository = if registry == DOCKER_HUB && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    (registry.to_owned(), repository)
}

/// A host name, an IPv4 address or an IPv6 address in brackets, and perhaps a port.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (None, port)
        }
        None => match text.split_once(':') {
            Some((host, _)) => (Some(host), &text[host.len()..]),
            None => (Some(text), ""),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let port_is_good = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.parse::<u16>().is_ok());
    port_is_good && host.is_none_or(|host| host.split('.').all(is_label))
}

/// Letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_word(first)
        && is_word(last)
        && bytes.split(|&byte| is_word(byte)).all(|between| {
            matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|&byte| byte == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_references_are_docker_hub_s() {
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("me/tool", "docker.io/me/tool:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            (
                "index.docker.io/busybox",
                "docker.io/library/busybox:latest",
            ),
            ("localhost/tool", "localhost/tool:latest"),
            ("host:5000/tool", "host:5000/tool:latest"),
            ("host:5000/a/b:V1.2-rc_3", "host:5000/a/b:V1.2-rc_3"),
            ("[::1]:5000/tool", "[::1]:5000/tool:latest"),
            ("127.0.0.1:80/tool", "127.0.0.1:80/tool:latest"),
            (
                "registry.k8s.io/e2e-test-images/a__b.c",
                "registry.k8s.io/e2e-test-images/a__b.c:latest",
            ),
        ] {
            assert_eq!(Reference::parse(text).expect(text).to_string(), full);
        }
    }

    #[test]
    fn of_a_tag_and_a_digest_the_digest_counts() {
        let reference = Reference::parse(&format!("busybox:1.36@{DIGEST}")).expect("both");
        assert_eq!(
            reference.to_string(),
            format!("docker.io/library/busybox@{DIGEST}")
        );
    }

    #[test]
    fn malformed_references_are_refused() {
        for text in [
            "",
            " ",
            "a b",
            "Busybox",
            "host/",
            "/busybox",
            "busybox:",
            "busybox:-1",
            "a//b",
            "busybox@sha256:12",
            "busybox@md5:00",
            "-a.example/b",
            "a.example:port/b",
            "../etc",
            "a..b",
            "a___b",
            "a-",
            "[::g]:1/b",
            "a.example:99999/b",
            "busybox:a/b:c:d",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "host.example/a?b",
            &format!("busybox:{}", "t".repeat(129)),
            &"r".repeat(256),
        ] {
            let parsed = Reference::parse(text);
            assert!(
                matches!(parsed, Err(ImageError::InvalidReference { .. })),
                "{text:?}: {parsed:?}"
            );
        }
    }
}

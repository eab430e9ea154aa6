//! Places that may serve an image.

use reqwest::Url;

use super::tls::TlsFiles;
use crate::config::RegistryConfig;
use crate::image::reference::Reference;

/// A place that may serve an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `host` or `host:port`, for messages and credentials.
    pub(super) host: String,
    /// `http` or `https`.
    scheme: &'static str,
    /// The registry that it stands in for, if it is a mirror.
    mirrored: Option<String>,
    /// Its own certificates.
    pub(super) tls: TlsFiles,
}

impl Endpoint {
    /// All of them, in the order in which they are asked. The registry itself comes last, unless
    /// the configuration lists it among its own mirrors (to allow it plain HTTP, or to say whom it is
    /// trusted by).
    pub(super) fn of(reference: &Reference, config: &RegistryConfig) -> Vec<Self> {
        let registry = &reference.registry;
        let mirrors = config
            .mirrors
            .get(registry)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut endpoints: Vec<Self> = mirrors
            .iter()
            .map(|mirror| Self {
                host: mirror.host.clone(),
                scheme: if mirror.plain_http { "http" } else { "https" },
                mirrored: (mirror.host != *registry).then(|| registry.clone()),
                tls: TlsFiles::of(mirror),
            })
            .collect();
        if !endpoints.iter().any(|endpoint| endpoint.host == *registry) {
            // Docker Hub's registry does not live under the name that its images have.
            let host = if registry == "docker.io" {
                "registry-1.docker.io"
            } else {
                registry
            };
            endpoints.push(Self {
                host: host.to_owned(),
                scheme: "https",
                mirrored: None,
                tls: TlsFiles::default(),
            });
        }
        endpoints
    }

    /// One that answers at a unix socket. The name is for messages: nobody resolves it.
    pub(super) fn local() -> Self {
        Self {
            host: "localhost".to_owned(),
            scheme: "http",
            mirrored: None,
            tls: TlsFiles::default(),
        }
    }

    /// The address of a manifest or a blob of the repository. Mirrors of several registries want to
    /// know which one is meant (`ns`, as containerd has it).
    pub(super) fn url(&self, repository: &str, kind: &str, name: &str) -> Option<Url> {
        let Self { scheme, host, .. } = self;
        let mut url =
            Url::parse(&format!("{scheme}://{host}/v2/{repository}/{kind}/{name}")).ok()?;
        if let Some(registry) = &self.mirrored {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Some(url)
    }

    /// Whether secrets can be sent there, and to what it names as its token server.
    pub(super) fn allows(&self, url: &Url) -> bool {
        url.scheme() == "https" || (self.scheme == "http" && url.scheme() == "http")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EndpointConfig;

    fn hosts(reference: &str, config: &RegistryConfig) -> Vec<String> {
        let reference = Reference::parse(reference).expect("a good reference");
        Endpoint::of(&reference, config)
            .iter()
            .map(|endpoint| {
                endpoint
                    .url("r", "blobs", "d")
                    .expect("a good address")
                    .to_string()
            })
            .collect()
    }

    #[test]
    fn mirrors_come_before_the_registry_itself() {
        let mut config = RegistryConfig::default();
        assert_eq!(
            hosts("busybox", &config),
            ["https://registry-1.docker.io/v2/r/blobs/d"]
        );
        let mirrors = vec![
            EndpointConfig {
                host: "one.example".into(),
                plain_http: false,
                ..EndpointConfig::default()
            },
            EndpointConfig {
                host: "127.0.0.1:5000".into(),
                plain_http: true,
                ..EndpointConfig::default()
            },
        ];
        config.mirrors.insert("docker.io".into(), mirrors);
        assert_eq!(
            hosts("busybox", &config),
            [
                "https://one.example/v2/r/blobs/d?ns=docker.io",
                "http://127.0.0.1:5000/v2/r/blobs/d?ns=docker.io",
                "https://registry-1.docker.io/v2/r/blobs/d",
            ]
        );
        assert_eq!(
            hosts("quay.io/a", &config),
            ["https://quay.io/v2/r/blobs/d"]
        );
    }

    #[test]
    fn a_registry_that_is_its_own_mirror_is_not_asked_over_tls_as_well() {
        let mut config = RegistryConfig::default();
        let itself = EndpointConfig {
            host: "local:5000".into(),
            plain_http: true,
            ..EndpointConfig::default()
        };
        config.mirrors.insert("local:5000".into(), vec![itself]);
        assert_eq!(
            hosts("local:5000/a", &config),
            ["http://local:5000/v2/r/blobs/d"]
        );
    }
}

//! The client of registries: OCI Distribution 1.1, and Docker's Registry HTTP API V2 before it.
//!
//! A [`Session`] is one pull's conversation. It knows the endpoints that may have the image (mirrors
//! from the configuration in their order, then the registry itself) and what each of them wants to
//! see as authorisation. It fetches documents (manifests, configurations), which are small and come
//! back whole and verified, and blobs, which come as a stream that ends well only if its digest was
//! right.
//!
//! Not oci-client, because it reads documents of any size into memory and verifies nothing of a
//! resumed stream. What is asked, and of whom:
//!
//! ```text
//! GET endpoint ── 200 ──> verify ──> done
//!   │  ├─ 401 ──> authorise (token server or password), once ──> GET again
//!   │  ├─ 403, 404 ──> next endpoint
//!   │  └─ 408, 429, 5xx, broken connection ──> wait, GET again, some times; then next endpoint
//!   └─ none left ──> the last endpoint's error
//! ```
//!
//! All of it is async and dies with the future that drives it.

mod auth;
mod blob;
mod docker_config;
mod document;
mod endpoint;
mod request;
mod resolve;
mod tls;

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::{Attempt, Policy};

use self::auth::Authorisations;
pub(crate) use self::blob::{BlobEvent, BlobSender};
use self::endpoint::Endpoint;
use self::request::Failure;
pub(crate) use self::resolve::Resolved;
use super::reference::Reference;
use super::{ImageError, PullRequest, chain};
use crate::config::RegistryConfig;

const MAX_REDIRECTS: usize = 10;

/// How long a registry may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// How often something is asked of one endpoint before it counts as unavailable.
    pub(crate) attempts: u32,
    /// Before the second attempt; doubled for each further one.
    pub(crate) first_back_off: Duration,
    /// The longest that an endpoint can make us wait (`Retry-After`).
    pub(crate) max_back_off: Duration,
    /// For a connection to be made.
    pub(crate) connect_timeout: Duration,
    /// Longest silence in the middle of an answer.
    pub(crate) read_timeout: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 4,
            first_back_off: Duration::from_millis(250),
            max_back_off: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
        }
    }
}

/// The client, shared by all pulls.
#[derive(Debug)]
pub(crate) struct Registry {
    client: Client,
    patience: Patience,
    config: RegistryConfig,
}

impl Registry {
    /// Reads the system's CA certificates. Without any, endpoints with plain HTTP still work.
    pub(crate) fn new(config: &RegistryConfig, patience: Patience) -> Self {
        // An error says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = client_builder(patience).build().unwrap_or_else(|error| {
            tracing::warn!(%error, "no TLS: only registries with plain_http can be reached");
            client_builder(patience)
                .tls_certs_only([])
                .build()
                .expect("a client without certificates needs nothing from the system")
        });
        Self {
            client,
            patience,
            config: config.clone(),
        }
    }

    /// The conversation about one image.
    pub(crate) fn session(&self, reference: &Reference, request: PullRequest) -> Session {
        let endpoints = match &request.registry_socket {
            None => Endpoint::of(reference, &self.config),
            Some(_) => vec![Endpoint::local()],
        };
        let client = |endpoint: &Endpoint| match (&request.registry_socket, &endpoint.tls) {
            (Some(socket), _) => {
                let builder = client_builder(self.patience).tls_certs_only([]);
                let built = builder.unix_socket(socket.as_path()).build();
                built.map_err(|error| chain(&error))
            }
            (None, tls) if tls.is_empty() => Ok(self.client.clone()),
            (None, tls) => tls.client(self.patience),
        };
        Session {
            clients: endpoints.iter().map(client).collect(),
            credentials_file: self.config.credentials_file.clone(),
            patience: self.patience,
            reference: reference.clone(),
            authorisations: Authorisations::new(endpoints.len(), request.auth),
            endpoints,
            preferred: AtomicUsize::new(0),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session {
    /// What each endpoint is spoken to with, or why it cannot be.
    clients: Vec<Result<Client, String>>,
    credentials_file: PathBuf,
    patience: Patience,
    reference: Reference,
    endpoints: Vec<Endpoint>,
    authorisations: Authorisations,
    /// The endpoint that answered last: asked first.
    preferred: AtomicUsize,
}

impl Session {
    fn client(&self, endpoint: usize) -> Result<&Client, Failure> {
        let client = self.clients[endpoint].as_ref();
        client.map_err(|reason| Failure::Lasting(reason.clone()))
    }

    /// An error that names the image and what of it does not match its digest.
    fn corrupt(&self, object: &str, reason: String) -> ImageError {
        let (image, object) = (self.reference.to_string(), object.to_owned());
        ImageError::Corrupt {
            image,
            object,
            reason,
        }
    }

    /// An error that names the image and what of it is refused.
    fn refused(&self, object: &str, reason: impl Into<String>) -> ImageError {
        let (image, object) = (self.reference.to_string(), object.to_owned());
        ImageError::Refused {
            image,
            object,
            reason: reason.into(),
        }
    }
}

fn client_builder(patience: Patience) -> reqwest::ClientBuilder {
    Client::builder()
        .user_agent(concat!("isopod/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(patience.connect_timeout)
        .read_timeout(patience.read_timeout)
        .redirect(Policy::custom(redirect))
}

/// Registries redirect to where their blobs are. Not in circles, and not out of TLS. The
/// authorisation stays behind when the host changes (reqwest sees to that).
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let from_tls = attempt
        .previous()
        .last()
        .is_some_and(|url| url.scheme() == "https");
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("too many redirects")
    } else if from_tls && attempt.url().scheme() != "https" {
        attempt.error("redirected from https to plain http")
    } else {
        attempt.follow()
    }
}

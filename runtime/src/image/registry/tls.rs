//! An endpoint's own TLS: whom to trust beside the system's authorities, and what to show.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, Client, Identity};

use super::{Patience, client_builder};
use crate::config::EndpointConfig;
use crate::image::error::chain;

/// Files in PEM. Empty paths: none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TlsFiles {
    ca: PathBuf,
    client_cert: PathBuf,
    client_key: PathBuf,
}

impl TlsFiles {
    pub(super) fn of(endpoint: &EndpointConfig) -> Self {
        Self {
            ca: endpoint.ca_file.clone(),
            client_cert: endpoint.client_cert_file.clone(),
            client_key: endpoint.client_key_file.clone(),
        }
    }

    /// Whether the client that all endpoints share will do.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// A client of its own, with what the files say now: certificates are replaced while the daemon
    /// runs. Blocking, for the time of reading three small files.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) fn client(&self, patience: Patience) -> Result<Client, String> {
        let mut builder = client_builder(patience);
        if !self.ca.as_os_str().is_empty() {
            let bundle = Certificate::from_pem_bundle(&read(&self.ca)?);
            let certificates = bundle.map_err(|error| told(&self.ca, &error))?;
            if certificates.is_empty() {
                return Err(format!("{}: no certificate in it", self.ca.display()));
            }
            builder = builder.tls_certs_merge(certificates);
        }
        if !self.client_cert.as_os_str().is_empty() {
            let mut pem = read(&self.client_key)?;
            pem.push(b'\n');
            pem.extend(read(&self.client_cert)?);
            let identity = Identity::from_pem(&pem);
            builder = builder.identity(identity.map_err(|error| told(&self.client_cert, &error))?);
        }
        builder.build().map_err(|error| chain(&error))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn told(path: &Path, error: &reqwest::Error) -> String {
    format!("{}: {}", path.display(), chain(error))
}

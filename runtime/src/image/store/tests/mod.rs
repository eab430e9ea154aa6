//! The store from outside: what registries do to it, and what it does with what they send.

mod archives;
mod credentials;
mod hostile;
mod names;
mod resilience;
mod trees;

use std::fs;
use std::path::Path;
use std::time::Duration;

use isopod_tests::images::layer::Entry;
use tempfile::TempDir;

use super::ImageStore;
use crate::config::{EndpointConfig, RegistryConfig};
use crate::image::registry::Patience;
use crate::image::testing::{Server, Site};
use crate::image::{Credentials, Image, ImageError, Progress, PullRequest};

/// A configuration in which `registry.test` is served by these hosts, over plain HTTP, and which
/// keeps nothing of a failed pull.
fn mirrored(hosts: &[String]) -> RegistryConfig {
    let endpoint = |host: &String| EndpointConfig {
        host: host.clone(),
        plain_http: true,
        ..EndpointConfig::default()
    };
    let mut config = RegistryConfig {
        keep_layers_ms: 0,
        ..RegistryConfig::default()
    };
    let endpoints = hosts.iter().map(endpoint).collect();
    config.mirrors.insert("registry.test".to_owned(), endpoints);
    config
}

/// A store that does not wait long.
fn store(root: &Path, config: &RegistryConfig) -> ImageStore {
    let patience = Patience {
        attempts: 3,
        first_back_off: Duration::from_millis(5),
        max_back_off: Duration::from_millis(50),
        connect_timeout: Duration::from_millis(500),
        read_timeout: Duration::from_secs(1),
    };
    ImageStore::open_with(root, config, patience).expect("a store")
}

/// A store of its own whose `registry.test` is this server.
fn store_for(server: &Server) -> (TempDir, ImageStore) {
    let root = TempDir::new().expect("a directory");
    let store = store(root.path(), &mirrored(&[server.host()]));
    (root, store)
}

const IMAGE: &str = "registry.test/image:1";

/// Two layers, the first large enough for a connection to break in its middle.
fn small_image() -> Site {
    // Nothing that gzip could make smaller: Marsaglia's xorshift.
    let mut state = 2_463_534_242_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    })
    .take(3_000_000)
    .collect();
    Site::new(&[
        &[Entry::directory("etc"), Entry::file("noise", noise)],
        &[Entry::file("etc/issue", "two\n")],
    ])
}

/// Pulls, and tells nobody how far it is.
async fn pull(
    store: &ImageStore,
    reference: &str,
    auth: Option<Credentials>,
) -> Result<Image, ImageError> {
    let request = PullRequest {
        reference: reference.to_owned(),
        auth,
        registry_socket: None,
    };
    store.pull(request, &Progress::default()).await
}

/// Everything in the store's directory, but for the directories that are always there.
fn left_behind(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for directory in ["layers", "images", "tmp"] {
        for entry in fs::read_dir(root.join(directory)).expect("a directory") {
            let name = entry.expect("an entry").file_name();
            found.push(format!("{directory}/{}", name.to_string_lossy()));
        }
    }
    found
}

/// The store is as if nothing had ever been pulled; deleting may still be under way.
async fn assert_empty(root: &TempDir, store: &ImageStore) {
    assert!(store.list().is_empty());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let left = left_behind(root.path());
        if left.is_empty() {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "left behind: {left:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Pulls what cannot be pulled, and sees that nothing stays.
async fn fails(server: &Server) -> ImageError {
    let (root, store) = store_for(server);
    let error = pull(&store, IMAGE, None)
        .await
        .expect_err("a faulty registry");
    assert_empty(&root, &store).await;
    error
}

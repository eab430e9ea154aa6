//! What registries are shown: passwords, tokens, certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::{IMAGE, assert_empty, mirrored, pull, small_image, store, store_for};
use crate::config::{EndpointConfig, RegistryConfig};
use crate::image::testing::{Reply, Server};
use crate::image::{Credentials, ImageError, Secret};

fn password(server: Option<&str>) -> Option<Credentials> {
    Some(Credentials {
        secret: Secret::Password {
            username: "me".to_owned(),
            password: "secret".to_owned(),
        },
        server: server.map(str::to_owned),
    })
}

#[tokio::test]
async fn a_registry_with_basic_authentication_gets_the_password_after_it_asked() {
    let site = small_image();
    let server = Server::start(move |asked| {
        let expected = format!("Basic {}", STANDARD.encode("me:secret"));
        if asked.headers.get("authorization") == Some(&expected) {
            site.answer(asked)
        } else {
            Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="registry""#)
        }
    })
    .await;
    let (root, store) = store_for(&server);
    for auth in [None, password(Some("elsewhere.test"))] {
        let error = pull(&store, IMAGE, auth).await.expect_err("no password");
        assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    }
    assert!(
        server
            .asked()
            .iter()
            .all(|asked| !asked.headers.contains_key("authorization"))
    );
    assert_empty(&root, &store).await;
    pull(&store, IMAGE, password(Some(&server.host())))
        .await
        .expect("the right password");
    pull(&store, IMAGE, password(None))
        .await
        .expect("the right password");
}

#[tokio::test]
async fn a_wrong_password_is_denied_after_one_try() {
    let server = Server::start(|_| {
        Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="registry""#)
    })
    .await;
    let (_root, store) = store_for(&server);
    let error = pull(&store, IMAGE, password(None))
        .await
        .expect_err("a wrong password");
    assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    assert_eq!(server.asked().len(), 2);
    assert!(!error.to_string().contains("secret"));
}

#[tokio::test]
async fn a_token_server_is_asked_for_this_repository_and_its_token_used() {
    let site = small_image();
    let server = Server::start(move |asked| {
        if asked.path.starts_with("/token") {
            return Reply::new(200, r#"{"token": "opened"}"#);
        }
        match asked.headers.get("authorization").map(String::as_str) {
            Some("Bearer opened") => site.answer(asked),
            _ => Reply::new(401, "").header(
                "WWW-Authenticate",
                format!(
                    r#"Bearer realm="http://{}/token",service="here",scope="repository:image:pull""#,
                    asked.headers["host"]
                ),
            ),
        }
    })
    .await;
    let (_root, store) = store_for(&server);
    pull(&store, IMAGE, None).await.expect("anonymously");
    pull(&store, IMAGE, password(None))
        .await
        .expect("with a password");
    let identity = Credentials {
        secret: Secret::IdentityToken("identity".to_owned()),
        server: None,
    };
    pull(&store, IMAGE, Some(identity))
        .await
        .expect("with an identity token");
    let tokens: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.path.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 3, "one token for each pull");
    assert_eq!(
        tokens[0].path,
        "/token?scope=repository%3Aimage%3Apull&service=here"
    );
    assert!(!tokens[0].headers.contains_key("authorization"));
    assert!(tokens[1].headers.contains_key("authorization"));
    assert_eq!(tokens[2].method, "POST");
    assert!(tokens[2].body.contains("refresh_token=identity"));
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let site = small_image();
    let server =
        Server::start(
            move |asked| match asked.headers.get("authorization").map(String::as_str) {
                Some("Bearer mine") => site.answer(asked),
                _ => Reply::new(401, "").header("WWW-Authenticate", r#"Bearer realm="http://x/y""#),
            },
        )
        .await;
    let (_root, store) = store_for(&server);
    let token = Credentials {
        secret: Secret::RegistryToken("mine".to_owned()),
        server: None,
    };
    pull(&store, IMAGE, Some(token))
        .await
        .expect("the right token");
}

#[tokio::test]
async fn secrets_stay_behind_when_a_registry_redirects_to_another_host() {
    let site = small_image();
    let elsewhere = site.clone();
    let storage = Server::start(move |asked| elsewhere.answer(asked)).await;
    let storage_host = storage.host();
    let server = Server::start(move |asked| {
        if !asked.headers.contains_key("authorization") {
            Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="registry""#)
        } else if asked.path.contains("/blobs/") {
            let address = format!("http://{storage_host}{}", asked.path);
            Reply::new(307, "").header("Location", address)
        } else {
            site.answer(asked)
        }
    })
    .await;
    let (_root, store) = store_for(&server);
    pull(&store, IMAGE, password(None))
        .await
        .expect("through a redirect");
    let asked = storage.asked();
    assert_eq!(asked.len(), 3, "the configuration and two layers");
    for asked in asked {
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
    }
}

/// A registry that is opened by this `Authorization` and nothing else.
async fn opened_by(expected: &str) -> Server {
    let (site, expected) = (small_image(), expected.to_owned());
    Server::start(move |asked| {
        if asked.headers.get("authorization") == Some(&expected) {
            site.answer(asked)
        } else {
            Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="registry""#)
        }
    })
    .await
}

/// Pulls from a server with this `config.json`.
async fn pull_with(server: &Server, config_json: &str) -> Result<(), ImageError> {
    let root = TempDir::new().expect("a directory");
    let file = root.path().join("config.json");
    fs::write(&file, config_json).expect("written");
    let config = RegistryConfig {
        credentials_file: file,
        ..mirrored(&[server.host()])
    };
    let store = store(&root.path().join("images"), &config);
    pull(&store, IMAGE, None).await.map(drop)
}

#[tokio::test]
async fn the_node_s_credentials_open_registries_for_pulls_that_bring_none() {
    let auth = STANDARD.encode("me:secret");
    let server = opened_by(&format!("Basic {auth}")).await;
    let host = server.host();
    for auths in [
        json!({ &host: { "auth": auth } }),
        json!({ format!("http://{host}/v2/"): { "username": "me", "password": "secret" } }),
        json!({ &host: { "auth": "d3Jvbmc6" }, format!("{host}/image"): { "auth": auth } }),
    ] {
        let text = json!({ "auths": auths }).to_string();
        pull_with(&server, &text).await.expect(&text);
    }
    for auths in [
        json!({}),
        json!({ "elsewhere.test": { "auth": auth } }),
        json!({ &host: { "auth": "no base64" } }),
        json!({ format!("{host}/other"): { "auth": auth } }),
    ] {
        let text = json!({ "auths": auths }).to_string();
        let error = pull_with(&server, &text).await.expect_err(&text);
        assert!(matches!(error, ImageError::Denied { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_credential_helper_is_asked_for_the_registry_s_host() {
    let auth = STANDARD.encode("me:secret");
    let server = opened_by(&format!("Basic {auth}")).await;
    let host = server.host();
    // Helpers are found in PATH, which a test must not change: one of its own folders by a name
    // that nobody else uses, in the first folder of PATH that can be written.
    let folder = std::env::split_paths(&std::env::var_os("PATH").expect("a PATH"))
        .find(|folder| tempfile::tempfile_in(folder).is_ok());
    let Some(folder) = folder else {
        return isopod_tests::skip("no folder of PATH can be written");
    };
    let helper = |script: &str| {
        let mut file = tempfile::Builder::new();
        let file = file
            .prefix("docker-credential-isopod-test-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempfile_in(&folder)
            .expect("a program")
            .into_temp_path();
        fs::write(&file, script).expect("written");
        let name = file.file_name().expect("a name").to_string_lossy();
        let name = name.trim_start_matches("docker-credential-").to_owned();
        (file, name)
    };
    let answer = json!({ "ServerURL": host, "Username": "me", "Secret": "secret" });
    let (_good, good) = helper(&format!(
        "#!/bin/sh\n[ $1 = get ] && [ \"$(cat)\" = {host} ] && echo '{answer}'\n"
    ));
    let (_unknown, unknown) =
        helper("#!/bin/sh\necho credentials not found in native keychain; exit 1\n");
    let (_broken, broken) = helper("#!/bin/sh\necho secret; exit 1\n");
    for config in [
        json!({ "credHelpers": { &host: good } }),
        json!({ "credsStore": good }),
        json!({ "credsStore": broken, "credHelpers": { &host: good } }),
        json!({ "credsStore": unknown, "auths": { &host: { "auth": auth } } }),
    ] {
        pull_with(&server, &config.to_string())
            .await
            .expect("the helper knows");
    }
    for helper in [unknown.as_str(), &broken, "no-such-helper", "../sh"] {
        let config = json!({ "credsStore": helper });
        let error = pull_with(&server, &config.to_string())
            .await
            .expect_err(helper);
        assert!(matches!(error, ImageError::Denied { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

/// An authority, and how to make certificates of it.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn certify(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate, key)
    }

    /// A server's side, which wants to see a certificate of the same authority if it is told to.
    fn acceptor(&self, wants_certificate: bool) -> TlsAcceptor {
        // An error says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (certificate, key) = self.certify("127.0.0.1");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let builder = ServerConfig::builder();
        let builder = if wants_certificate {
            let mut roots = RootCertStore::empty();
            roots.add(self.0.der().clone()).expect("an authority");
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let config = builder.with_single_cert(chain, key).expect("a server");
        TlsAcceptor::from(Arc::new(config))
    }

    /// Writes `ca.pem`, and a client's `cert.pem` and `key.pem`.
    fn write(&self, folder: &Path) {
        let (certificate, key) = self.certify("node");
        fs::write(folder.join("ca.pem"), self.0.pem()).expect("written");
        fs::write(folder.join("cert.pem"), certificate.pem()).expect("written");
        fs::write(folder.join("key.pem"), key.serialize_pem()).expect("written");
    }
}

/// Pulls over TLS with these files of the folder.
async fn pull_over_tls(server: &Server, folder: &Path, files: &[&str]) -> Result<(), ImageError> {
    let path = |name: &str| match files.contains(&name) {
        true => folder.join(name),
        false => std::path::PathBuf::new(),
    };
    let endpoint = EndpointConfig {
        host: server.host(),
        plain_http: false,
        ca_file: path("ca.pem"),
        client_cert_file: path("cert.pem"),
        client_key_file: path("key.pem"),
    };
    let mut config = RegistryConfig::default();
    config
        .mirrors
        .insert("registry.test".to_owned(), vec![endpoint]);
    let root = TempDir::new().expect("a directory");
    pull(&store(root.path(), &config), IMAGE, None)
        .await
        .map(drop)
}

#[tokio::test]
async fn an_endpoint_s_own_authority_is_trusted_and_no_other_one() {
    let folder = TempDir::new().expect("a directory");
    let authority = Authority::new();
    authority.write(folder.path());
    let site = small_image();
    let server =
        Server::start_tls(authority.acceptor(false), move |asked| site.answer(asked)).await;
    pull_over_tls(&server, folder.path(), &["ca.pem"])
        .await
        .expect("a trusted registry");
    let error = pull_over_tls(&server, folder.path(), &[])
        .await
        .expect_err("an unknown authority");
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");

    Authority::new().write(folder.path());
    let error = pull_over_tls(&server, folder.path(), &["ca.pem"])
        .await
        .expect_err("another authority");
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_asks_for_a_certificate_is_shown_its_own() {
    let folder = TempDir::new().expect("a directory");
    let authority = Authority::new();
    authority.write(folder.path());
    let site = small_image();
    let server = Server::start_tls(authority.acceptor(true), move |asked| site.answer(asked)).await;
    pull_over_tls(&server, folder.path(), &["ca.pem", "cert.pem", "key.pem"])
        .await
        .expect("a certificate that the registry trusts");
    pull_over_tls(&server, folder.path(), &["ca.pem"])
        .await
        .expect_err("no certificate");
}

#[tokio::test]
async fn certificate_files_that_cannot_be_used_are_named() {
    let folder = TempDir::new().expect("a directory");
    let authority = Authority::new();
    authority.write(folder.path());
    let server = Server::start_tls(authority.acceptor(false), |_| Reply::new(500, "")).await;
    let ca = folder.path().join("ca.pem");
    for contents in [None, Some("no certificate")] {
        let _ = fs::remove_file(&ca);
        if let Some(contents) = contents {
            fs::write(&ca, contents).expect("written");
        }
        let error = pull_over_tls(&server, folder.path(), &["ca.pem"])
            .await
            .expect_err("no authority");
        assert!(error.to_string().contains("ca.pem"), "{error}");
        assert!(server.asked().is_empty());
    }
}

//! Credentials of the node: Docker's `config.json`, and the programs that it names.
//!
//! The file's `auths` has secrets by registry; `credHelpers` and `credsStore` name programs
//! (`docker-credential-NAME`) that are asked instead, for one registry or for all. A key is a host,
//! perhaps with the beginning of a repository's path as containers-auth.json(5) has it, or an
//! address as Docker's own tools write it.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::request::Failure;
use crate::image::{Secret, is_docker_hub};

/// The largest file, and the longest answer of a helper, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// How long a helper may take: some ask a cloud's metadata server.
const HELPER_LIMIT: Duration = Duration::from_secs(60);

/// What Docker's tools call Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The user name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What a helper says that knows no credentials, among them those that are no error.
const UNKNOWN_SERVER: &str = "credentials not found in native keychain";

/// What of the file matters here.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "lowercase", default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// A helper's answer to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// What the file at `path` has for a repository of `host`, or what the helper that it names has.
///
/// # Errors
/// [`Failure::Denied`] when the file or the helper cannot be used. No secret is in the message.
pub(super) async fn lookup(
    path: &Path,
    host: &str,
    repository: &str,
) -> Result<Option<Secret>, Failure> {
    let denied = |reason: String| Failure::Denied(format!("{}: {reason}", path.display()));
    let text = read(path)
        .await
        .map_err(|error| denied(error.to_string()))?;
    // serde_json's message could quote a secret.
    let config: DockerConfig = serde_json::from_slice(&text)
        .map_err(|error| denied(format!("malformed at line {}", error.line())))?;
    let helper = best(&config.cred_helpers, host, repository)
        .filter(|helper| !helper.is_empty())
        .or(Some(&config.creds_store))
        .filter(|helper| !helper.is_empty());
    if let Some(helper) = helper
        && let Some(secret) = ask(helper, host).await?
    {
        return Ok(Some(secret));
    }
    let Some(auth) = best(&config.auths, host, repository) else {
        return Ok(None);
    };
    auth.secret()
        .ok_or_else(|| denied(format!("the auth of {host} is not user:password in base64")))
}

async fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_BYTES + 1).read_to_end(&mut text).await?;
    if text.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::other(format!("over {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// The value whose key says most about the repository.
fn best<'a, T>(table: &'a HashMap<String, T>, host: &str, repository: &str) -> Option<&'a T> {
    table
        .iter()
        .filter_map(|(key, value)| Some((fit(key, host, repository)?, value)))
        .max_by_key(|(fit, _)| *fit)
        .map(|(_, value)| value)
}

/// How well a key fits: the length of the path that it has in common, if it fits at all.
fn fit(key: &str, host: &str, repository: &str) -> Option<usize> {
    let rest = key.split_once("://").map_or(key, |(_scheme, rest)| rest);
    let (key_host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if key_host != host && !(is_docker_hub(key_host) && is_docker_hub(host)) {
        return None;
    }
    let path = path.trim_end_matches('/');
    if matches!(path, "" | "v1" | "v2") {
        return Some(0);
    }
    let is_above = repository
        .strip_prefix(path)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    is_above.then_some(path.len())
}

impl Auth {
    /// `Some(None)` if it is empty, `None` if it is malformed.
    #[expect(
        clippy::option_option,
        reason = "an empty entry is not a malformed one"
    )]
    fn secret(&self) -> Option<Option<Secret>> {
        Some(Some(if !self.identitytoken.is_empty() {
            Secret::IdentityToken(self.identitytoken.clone())
        } else if !self.registrytoken.is_empty() {
            Secret::RegistryToken(self.registrytoken.clone())
        } else if !self.username.is_empty() {
            Secret::Password {
                username: self.username.clone(),
                password: self.password.clone(),
            }
        } else if !self.auth.is_empty() {
            Secret::from_basic(&self.auth)?
        } else {
            return Some(None);
        }))
    }
}

/// Asks `docker-credential-NAME` (the protocol of docker/docker-credential-helpers).
async fn ask(helper: &str, host: &str) -> Result<Option<Secret>, Failure> {
    let denied = |reason: &str| {
        Failure::Denied(format!(
            "the credential helper {:?} {reason}",
            helper.escape_debug().to_string()
        ))
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !helper.bytes().all(is_name) {
        return Err(denied("is no program's name"));
    }
    let server = if is_docker_hub(host) {
        DOCKER_HUB_KEY
    } else {
        host
    };
    let answer = tokio::time::timeout(HELPER_LIMIT, run(helper, server))
        .await
        .map_err(|_elapsed| denied("does not answer"))?
        .map_err(|error| denied(&format!("cannot be run: {error}")))?;
    let (success, text) = answer;
    if !success {
        if String::from_utf8_lossy(&text).contains(UNKNOWN_SERVER) {
            return Ok(None);
        }
        return Err(denied("failed"));
    }
    let answer: HelperAnswer = serde_json::from_slice(&text)
        .map_err(|_could_quote_it| denied("answers what is no JSON of credentials"))?;
    let HelperAnswer { username, secret } = answer;
    Ok(Some(if username == TOKEN_USER {
        Secret::IdentityToken(secret)
    } else {
        Secret::Password {
            username,
            password: secret,
        }
    }))
}

/// Whether the helper succeeded, and what it printed. Killed if nobody waits any longer.
async fn run(helper: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    if let Some(mut stdin) = stdin {
        // One that knows without asking need not read it.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut text = Vec::new();
    if let Some(stdout) = stdout {
        stdout.take(MAX_BYTES).read_to_end(&mut text).await?;
    }
    Ok((child.wait().await?.success(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hosts_addresses_and_beginnings_of_repositories() {
        for (key, expected) in [
            ("registry.test", Some(0)),
            ("https://registry.test", Some(0)),
            ("https://registry.test/v2/", Some(0)),
            ("registry.test/team", Some(4)),
            ("registry.test/team/app", Some(8)),
            ("registry.test/te", None),
            ("registry.test:5000", None),
            ("elsewhere.test/registry.test", None),
        ] {
            assert_eq!(fit(key, "registry.test", "team/app"), expected, "{key}");
        }
        let hub = "registry-1.docker.io";
        assert_eq!(fit(DOCKER_HUB_KEY, hub, "library/busybox"), Some(0));
    }

    #[tokio::test]
    async fn a_malformed_file_is_told_without_its_contents() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = r#"{"auths": {"registry.test": {"password": 5, "auth": "hidden"}}}"#;
        std::fs::write(file.path(), text).expect("written");
        let failure = lookup(file.path(), "registry.test", "a").await;
        let text = format!("{:?}", failure.err());
        assert!(
            text.contains("line 1") && !text.contains("hidden"),
            "{text}"
        );
        let missing = lookup(Path::new("/nonexistent"), "registry.test", "a").await;
        assert!(matches!(missing, Err(Failure::Denied(_))));
    }
}

//! Authorisation: passwords for those who ask for them, tokens from whom they send us to.
//!
//! RFC 9110 section 11 for challenges; Docker's "Token Authentication Specification" and "OAuth2
//! token authentication" for token servers.

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::Session;
use super::docker_config;
use super::document::read_bounded;
use super::request::{Failure, transport};
use crate::image::{Credentials, Secret};

/// The longest answer of a token server.
const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// Who asks, for OAuth2.
const CLIENT_ID: &str = "isopod";

/// What each endpoint gets to see.
#[derive(Debug)]
pub(super) struct Authorisations {
    credentials: Option<Credentials>,
    /// A header per endpoint, once it was asked for.
    headers: Mutex<Vec<Option<HeaderValue>>>,
}

impl Authorisations {
    pub(super) fn new(endpoints: usize, credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            headers: Mutex::new(vec![None; endpoints]),
        }
    }

    pub(super) fn get(&self, endpoint: usize) -> Option<HeaderValue> {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner)[endpoint].clone()
    }

    fn set(&self, endpoint: usize, header: HeaderValue) {
        self.headers.lock().unwrap_or_else(PoisonError::into_inner)[endpoint] = Some(header);
    }
}

/// What an endpoint wants.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// A token server's answer; `access_token` is OAuth2's name for the same thing.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session {
    /// Answers the challenge in a 401, so that the next request to the endpoint is authorised.
    pub(super) async fn authorise(&self, index: usize, response: &Response) -> Result<(), Failure> {
        let host = &self.endpoints[index].host;
        let secret = self.secret(host).await?;
        let secret = secret.as_ref();
        if let Some(Secret::RegistryToken(token)) = secret {
            self.authorisations
                .set(index, secret_header(format!("Bearer {token}"))?);
            return Ok(());
        }
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = challenges
            .filter_map(|value| parse_challenge(value.to_str().ok()?))
            .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }))
            .ok_or_else(|| Failure::Denied("401 without a known kind of challenge".to_owned()))?;
        let header = match (challenge, secret) {
            (Challenge::Basic, Some(Secret::Password { username, password })) => {
                basic(username, password)?
            }
            (Challenge::Basic, _) => {
                return Err(Failure::Denied(
                    "a user name and a password are needed".to_owned(),
                ));
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                secret,
            ) => {
                let realm = Url::parse(&realm)
                    .ok()
                    .filter(|realm| self.endpoints[index].allows(realm))
                    .ok_or_else(|| {
                        Failure::Lasting("its token server is not at an https address".to_owned())
                    })?;
                let scope = scope
                    .unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
                self.fetch_token(index, realm, service.as_deref(), &scope, secret)
                    .await?
            }
        };
        self.authorisations.set(index, header);
        Ok(())
    }

    /// What opens an endpoint: what came with the pull, or else what the node has.
    async fn secret(&self, host: &str) -> Result<Option<Secret>, Failure> {
        if let Some(credentials) = &self.authorisations.credentials {
            let secret = credentials
                .are_for(host)
                .then(|| credentials.secret.clone());
            return Ok(secret);
        }
        if self.credentials_file.as_os_str().is_empty() {
            return Ok(None);
        }
        docker_config::lookup(&self.credentials_file, host, &self.reference.repository).await
    }

    async fn fetch_token(
        &self,
        index: usize,
        mut realm: Url,
        service: Option<&str>,
        scope: &str,
        secret: Option<&Secret>,
    ) -> Result<HeaderValue, Failure> {
        let mut parameters = vec![("scope", scope)];
        parameters.extend(service.map(|service| ("service", service)));
        let request = if let Some(Secret::IdentityToken(token)) = secret {
            parameters.extend([
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
                ("client_id", CLIENT_ID),
            ]);
            // A form's body is written like a query.
            let mut form = realm.clone();
            form.query_pairs_mut().clear().extend_pairs(parameters);
            self.client(index)?
                .post(realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned())
        } else {
            realm.query_pairs_mut().extend_pairs(parameters);
            let request = self.client(index)?.get(realm);
            match secret {
                Some(Secret::Password { username, password }) => {
                    request.header(AUTHORIZATION, basic(username, password)?)
                }
                _ => request,
            }
        };
        let response = request.send().await.map_err(|error| transport(&error))?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Failure::passing(format!(
                "its token server answers {status}"
            )));
        }
        if !status.is_success() {
            return Err(Failure::Denied(format!(
                "its token server answers {status}"
            )));
        }
        let body = read_bounded(response, MAX_TOKEN_BYTES).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|error| Failure::Lasting(format!("its token server's answer: {error}")))?;
        let token = answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| Failure::Lasting("its token server sends no token".to_owned()))?;
        secret_header(format!("Bearer {token}"))
    }
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Failure> {
    secret_header(format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    ))
}

/// A header that no debug output shows.
fn secret_header(text: String) -> Result<HeaderValue, Failure> {
    let mut header = HeaderValue::try_from(text)
        .map_err(|_invalid| Failure::Denied("the credentials are malformed".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// `Bearer realm="...",service="...",scope="..."`, parameters in any order.
fn parse_challenge(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    while let Some((key, after)) = rest.split_once('=') {
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => {
                let (value, rest) = quoted.split_once('"')?;
                (value, rest)
            }
            None => after.split_once(',').unwrap_or((after, "")),
        };
        rest = rest.trim_start_matches([',', ' ']);
        let slot = match key.trim().to_ascii_lowercase().as_str() {
            "realm" => &mut realm,
            "service" => &mut service,
            "scope" => &mut scope,
            _ => continue,
        };
        *slot = Some(value.to_owned());
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
        scope,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood_in_any_order_and_quoting() {
        let expected = Some(Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("registry.example".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        });
        for text in [
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#,
            r#"bearer scope="repository:a/b:pull,push", service=registry.example, realm="https://auth.example/token""#,
        ] {
            assert_eq!(parse_challenge(text), expected);
        }
        assert_eq!(
            parse_challenge(r#"Basic realm="x""#),
            Some(Challenge::Basic)
        );
        assert_eq!(parse_challenge(r#"Bearer realm="unfinished"#), None);
        assert_eq!(parse_challenge("Negotiate"), None);
    }
}

//! What the CRI's `AuthConfig` says.

use isopod_proto::cri::AuthConfig;
use tonic::Status;

use crate::image::{Credentials, Secret};

/// `None` if it says nothing. Of several secrets the first of these counts, as in containerd: user
/// name and password, identity token, registry token, and `auth`, which is the first one in base64.
///
/// # Errors
/// INVALID_ARGUMENT if `auth` is not `user:password` in base64. Its value is not in the message.
pub(super) fn credentials(auth: AuthConfig) -> Result<Option<Credentials>, Status> {
    let AuthConfig {
        username,
        password,
        auth,
        server_address,
        identity_token,
        registry_token,
    } = auth;
    let secret = if !username.is_empty() {
        Secret::Password { username, password }
    } else if !identity_token.is_empty() {
        Secret::IdentityToken(identity_token)
    } else if !registry_token.is_empty() {
        Secret::RegistryToken(registry_token)
    } else if !auth.is_empty() {
        Secret::from_basic(&auth)
            .ok_or_else(|| Status::invalid_argument("auth.auth: not user:password in base64"))?
    } else {
        return Ok(None);
    };
    let server = host(&server_address);
    Ok(Some(Credentials { secret, server }))
}

/// The host in `https://index.docker.io/v1/`, or in `host:port` alone.
fn host(address: &str) -> Option<String> {
    let rest = address
        .split_once("://")
        .map_or(address, |(_scheme, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    (!host.is_empty()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn auth_is_user_and_password_in_base64() {
        let auth = AuthConfig {
            auth: STANDARD.encode("me:pass:word\0\0"),
            server_address: "https://index.docker.io/v1/".to_owned(),
            ..AuthConfig::default()
        };
        let expected = Credentials {
            secret: Secret::Password {
                username: "me".to_owned(),
                password: "pass:word".to_owned(),
            },
            server: Some("index.docker.io".to_owned()),
        };
        assert_eq!(credentials(auth).expect("a good one"), Some(expected));
        assert_eq!(
            credentials(AuthConfig::default()).expect("nothing is good"),
            None
        );
    }

    #[test]
    fn malformed_auth_is_an_invalid_argument_and_not_shown() {
        for auth in ["%%%", "bm9jb2xvbg=="] {
            let auth = AuthConfig {
                auth: auth.to_owned(),
                ..AuthConfig::default()
            };
            let error = credentials(auth.clone()).expect_err("malformed");
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(!error.message().contains(&auth.auth));
        }
    }
}

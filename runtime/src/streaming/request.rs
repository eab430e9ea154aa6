//! From an HTTP request to an upgraded connection, or to a refusal that says why.

use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use super::channel::Version;

const SEC_WEBSOCKET_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");

/// What a URL is for; the first part of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Exec,
    Attach,
}

impl Route {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
        }
    }

    /// The route and the token of `/<route>/<token>`.
    pub(super) fn parse(path: &str) -> Option<(Self, &str)> {
        let (name, token) = path.strip_prefix('/')?.split_once('/')?;
        let route = [Self::Exec, Self::Attach]
            .into_iter()
            .find(|route| route.name() == name)?;
        Some((route, token))
    }
}

/// A request that gets no stream.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    pub(super) fn response(self) -> Response<String> {
        let mut response = Response::new(self.message + "\n");
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.status == StatusCode::UPGRADE_REQUIRED {
            // RFC 9110 section 15.5.22: the answer names what to upgrade to.
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade, close"));
        }
        response
    }
}

/// Chooses how to stream, and prepares the answer that accepts.
///
/// # Errors
///
/// [`Refusal`] when the client offers nothing that the server speaks.
pub(super) fn negotiate<B>(request: &Request<B>) -> Result<(Version, Response<String>), Refusal> {
    match upgrade(request.headers()).as_deref() {
        Some("websocket") => web_socket(request),
        Some(other) => {
            let message = format!("streams are upgraded to websocket, not to {other}");
            Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, message))
        }
        None => {
            let message = "streams are upgraded to websocket";
            Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, message))
        }
    }
}

fn web_socket<B>(request: &Request<B>) -> Result<(Version, Response<String>), Refusal> {
    if request.method() != Method::GET {
        let message = "a WebSocket begins with GET (RFC 6455 section 4.1)";
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message));
    }
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    let offered = offered.iter().filter_map(|value| value.to_str().ok());
    let names = offered.flat_map(|value| value.split(',')).map(str::trim);
    let Some(version) = Version::choose(names) else {
        let message = format!(
            "Sec-WebSocket-Protocol must offer {} or {}",
            Version::V5.name(),
            Version::V4.name()
        );
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    };
    let mut response = create_response_with_body(request, String::new)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let name = HeaderValue::from_static(version.name());
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
    Ok((version, response))
}

/// What the client wants to upgrade to, in lower case.
fn upgrade(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(UPGRADE)?.to_str().ok()?;
    Some(
        value
            .chars()
            .take(64)
            .collect::<String>()
            .to_ascii_lowercase(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri("/exec/1");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    fn refused(headers: &[(&str, &str)]) -> (StatusCode, String) {
        let refusal = negotiate(&request(headers)).unwrap_err();
        (refusal.status, refusal.message)
    }

    const HANDSHAKE: [(&str, &str); 4] = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn handshake_of_rfc_6455_is_accepted_with_the_newest_protocol() {
        let mut headers = HANDSHAKE.to_vec();
        headers.push((
            "Sec-WebSocket-Protocol",
            "v4.channel.k8s.io, v5.channel.k8s.io",
        ));
        let (version, response) = negotiate(&request(&headers)).unwrap();
        assert_eq!(version, Version::V5);
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(
            response.headers()["sec-websocket-protocol"],
            "v5.channel.k8s.io"
        );
    }

    #[test]
    fn request_without_upgrade_is_told_to_upgrade() {
        let (status, message) = refused(&[]);
        assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
        assert!(message.contains("websocket"));
    }

    #[test]
    fn spdy_is_refused_by_name() {
        let (status, message) = refused(&[("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]);
        assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
        assert!(message.contains("spdy/3.1"), "{message}");
    }

    #[test]
    fn protocol_that_nobody_speaks_is_refused_with_those_that_are() {
        let mut headers = HANDSHAKE.to_vec();
        headers.push(("Sec-WebSocket-Protocol", "base64.channel.k8s.io"));
        let (status, message) = refused(&headers);
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(message.contains("v5.channel.k8s.io"), "{message}");
    }

    #[test]
    fn broken_key_is_refused() {
        let mut headers = HANDSHAKE.to_vec();
        headers[3].1 = "short";
        headers.push(("Sec-WebSocket-Protocol", "v5.channel.k8s.io"));
        assert_eq!(refused(&headers).0, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn route_is_two_parts_of_a_path() {
        assert_eq!(Route::parse("/exec/abc"), Some((Route::Exec, "abc")));
        assert_eq!(Route::parse("/attach/abc"), Some((Route::Attach, "abc")));
        for path in [
            "",
            "/",
            "/exec",
            "exec/abc",
            "/Exec/abc",
            "/portforward/abc",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}

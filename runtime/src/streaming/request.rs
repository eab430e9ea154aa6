//! From an HTTP request to an upgraded connection, or to a refusal that says why.

use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use super::{channel, port_forward, remote_command};

const SEC_WEBSOCKET_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");

/// What a SPDY client offers, best first, and what the server chose
/// (k8s.io/apimachinery, pkg/util/httpstream).
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What the server speaks, when the client offers none of it.
const ACCEPTED_STREAM_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What the `Upgrade` header says, both ways.
const WEB_SOCKET: &str = "websocket";
const SPDY: &str = "SPDY/3.1";

/// How to stream, as client and server agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A process's streams are channels of a WebSocket.
    WebSocket(channel::Version),
    /// They are streams of a SPDY connection.
    Spdy(remote_command::Version),
    /// Connections to ports are streams of a SPDY connection.
    Ports,
    /// The same, and the SPDY connection is in a WebSocket.
    TunnelledPorts,
}

/// [`port_forward::PROTOCOL`] in a WebSocket.
const TUNNELLED_PORTS: &str = "SPDY/3.1+portforward.k8s.io";

/// What a URL is for; the first part of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Exec,
    Attach,
    PortForward,
}

impl Route {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }

    /// The route and the token of `/<route>/<token>`.
    pub(super) fn parse(path: &str) -> Option<(Self, &str)> {
        let (name, token) = path.strip_prefix('/')?.split_once('/')?;
        let route = [Self::Exec, Self::Attach, Self::PortForward]
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
    /// The sub-protocols that would not have been refused.
    accepted: &'static [&'static str],
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            accepted: &[],
        }
    }

    pub(super) fn response(self) -> Response<String> {
        let mut response = Response::new(self.message + "\n");
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if self.status == StatusCode::UPGRADE_REQUIRED {
            // RFC 9110 section 15.5.22: the answer names what to upgrade to.
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1, websocket"));
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade, close"));
        }
        for name in self.accepted {
            let name = HeaderValue::from_static(name);
            headers.append(ACCEPTED_STREAM_PROTOCOLS, name);
        }
        response
    }
}

/// Chooses how to stream, and prepares the answer that accepts.
///
/// # Errors
///
/// [`Refusal`] when the client offers nothing that the server speaks.
pub(super) fn negotiate<B>(
    request: &Request<B>,
    route: Route,
) -> Result<(Way, Response<String>), Refusal> {
    let wanted = upgrade(request.headers());
    match wanted.as_deref() {
        Some(wanted) if wanted == WEB_SOCKET => web_socket(request, route),
        Some(wanted) if wanted.eq_ignore_ascii_case(SPDY) => spdy(request.headers(), route),
        wanted => {
            let instead = wanted.map_or_else(String::new, |other| format!(", not to {other}"));
            let message = format!("streams are upgraded to {SPDY} or {WEB_SOCKET}{instead}");
            Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, message))
        }
    }
}

fn web_socket<B>(request: &Request<B>, route: Route) -> Result<(Way, Response<String>), Refusal> {
    if request.method() != Method::GET {
        let message = "a WebSocket begins with GET (RFC 6455 section 4.1)";
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message));
    }
    let mut offered = offered(request.headers(), &SEC_WEBSOCKET_PROTOCOL);
    let (v5, v4) = (channel::Version::V5.name(), channel::Version::V4.name());
    let chosen = match route {
        Route::Exec | Route::Attach => {
            let version = channel::Version::choose(offered).ok_or(format!("{v5} or {v4}"));
            version.map(|version| (Way::WebSocket(version), version.name()))
        }
        Route::PortForward => {
            let common = offered.any(|name| name == TUNNELLED_PORTS);
            let chosen = common.then_some((Way::TunnelledPorts, TUNNELLED_PORTS));
            chosen.ok_or(TUNNELLED_PORTS.to_owned())
        }
    };
    let (way, name) = chosen.map_err(|spoken| {
        let message = format!("Sec-WebSocket-Protocol must offer {spoken}");
        Refusal::new(StatusCode::BAD_REQUEST, message)
    })?;
    let mut response = create_response_with_body(request, String::new)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let name = HeaderValue::from_static(name);
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
    Ok((way, response))
}

fn spdy(headers: &HeaderMap, route: Route) -> Result<(Way, Response<String>), Refusal> {
    let mut options = offered(headers, &CONNECTION);
    if !options.any(|option| option.eq_ignore_ascii_case("upgrade")) {
        let message = "Connection must name Upgrade (RFC 9110 section 7.8)";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    if route == Route::PortForward {
        let chosen = choose(headers, &[port_forward::PROTOCOL])?;
        return Ok((Way::Ports, upgraded_to_spdy(chosen)));
    }
    let chosen = choose(headers, &remote_command::Version::NAMES)?;
    let version = remote_command::Version::named(chosen);
    let version = version.expect("chosen among their names");
    Ok((Way::Spdy(version), upgraded_to_spdy(chosen)))
}

/// The first protocol of the client's that the server speaks too.
fn choose(headers: &HeaderMap, accepted: &'static [&'static str]) -> Result<&'static str, Refusal> {
    let mut none_offered = true;
    for name in offered(headers, &STREAM_PROTOCOL) {
        none_offered = false;
        if let Some(known) = accepted.iter().find(|known| **known == name) {
            return Ok(known);
        }
    }
    if none_offered {
        let message = format!(
            "{STREAM_PROTOCOL} must offer one of {}",
            accepted.join(", ")
        );
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let message = format!("the protocols spoken here are {}", accepted.join(", "));
    let mut refusal = Refusal::new(StatusCode::FORBIDDEN, message);
    refusal.accepted = accepted;
    Err(refusal)
}

fn upgraded_to_spdy(protocol: &'static str) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

/// The elements of a header that is a list.
fn offered<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers.get_all(name).into_iter();
    let values = values.filter_map(|value| value.to_str().ok());
    let elements = values.flat_map(|value| value.split(',')).map(str::trim);
    elements.filter(|element| !element.is_empty())
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
        let refusal = negotiate(&request(headers), Route::Exec).unwrap_err();
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
        let (way, response) = negotiate(&request(&headers), Route::Exec).unwrap();
        assert_eq!(way, Way::WebSocket(channel::Version::V5));
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
    fn spdy_client_gets_its_first_protocol_that_is_spoken_here() {
        let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
        for offered in ["v5.channel.k8s.io", "v3.channel.k8s.io, v4.channel.k8s.io"] {
            headers.push(("X-Stream-Protocol-Version", offered));
        }
        let (way, response) = negotiate(&request(&headers), Route::Exec).unwrap();
        assert_eq!(way, Way::Spdy(remote_command::Version::V3));
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
        assert_eq!(response.headers()["connection"], "Upgrade");
        assert_eq!(
            response.headers()["x-stream-protocol-version"],
            "v3.channel.k8s.io"
        );
    }

    #[test]
    fn spdy_client_without_a_common_protocol_is_told_those_that_are_spoken() {
        let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "spdy/3.1")];
        let (status, message) = refused(&headers);
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(message.contains("v4.channel.k8s.io"), "{message}");
        headers.push(("X-Stream-Protocol-Version", "v9.channel.k8s.io"));
        let refusal = negotiate(&request(&headers), Route::Exec).unwrap_err();
        let response = refusal.response();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let accepted = response.headers().get_all(ACCEPTED_STREAM_PROTOCOLS);
        let accepted: Vec<_> = accepted.iter().collect();
        assert_eq!(
            accepted,
            [
                "v4.channel.k8s.io",
                "v3.channel.k8s.io",
                "v2.channel.k8s.io",
                "channel.k8s.io"
            ]
        );
    }

    #[test]
    fn spdy_without_connection_upgrade_is_refused() {
        let headers = [
            ("Upgrade", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
        ];
        assert_eq!(refused(&headers).0, StatusCode::BAD_REQUEST);
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
    fn ports_have_protocols_of_their_own() {
        let negotiate = |headers: &[(&str, &str)]| {
            let answer = negotiate(&request(headers), Route::PortForward);
            answer.map(|(way, _)| way).map_err(|refusal| refusal.status)
        };
        let upgrade = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
        let with = |headers: &[(&'static str, &'static str)], name, value| {
            [headers, &[(name, value)]].concat()
        };
        let spdy = |protocol| with(&upgrade, "X-Stream-Protocol-Version", protocol);
        let socket = |protocol| with(&HANDSHAKE, "Sec-WebSocket-Protocol", protocol);
        assert_eq!(negotiate(&spdy("portforward.k8s.io")), Ok(Way::Ports));
        assert_eq!(
            negotiate(&spdy("v4.channel.k8s.io")),
            Err(StatusCode::FORBIDDEN)
        );
        assert_eq!(
            negotiate(&socket("SPDY/3.1+portforward.k8s.io")),
            Ok(Way::TunnelledPorts)
        );
        for protocol in ["portforward.k8s.io", "v5.channel.k8s.io"] {
            assert_eq!(negotiate(&socket(protocol)), Err(StatusCode::BAD_REQUEST));
        }
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
            "/portforwards/abc",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}

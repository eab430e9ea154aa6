//! Listens, hands out URLs and gives each connection a task.

use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info_span, warn};

use super::port_forward::{PortForward, Ports};
use super::remote_command::RemoteCommand;
use super::request::{Refusal, Route, Way, negotiate};
use super::session::Session;
use super::token::{TokenError, Tokens};
use super::tunnel::Tunnel;
use super::web_socket::{ChannelSession, socket_config};
use super::{OpenError, Process, StreamingError, Streams};
use crate::config::StreamingConfig;

/// Most connections whose request is being read; more wait in the kernel's queue.
const REQUESTS_MAX: usize = 256;

/// Most sessions at a time.
const SESSIONS_MAX: usize = 1024;

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may keep its connection without a session.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Largest request, in bytes, and most headers.
const REQUEST_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// Connections that the kernel keeps for us.
const BACKLOG: u32 = 1024;

/// How long to wait after the kernel could give no connection (out of descriptors, usually).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long clients may take to leave when the daemon stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The streaming server. Dropped, it stops listening and ends its sessions.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    base: String,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Shared {
    tokens: Tokens<Waiting>,
    sessions: Arc<Semaphore>,
    idle: Duration,
    stop: CancellationToken,
}

type Open = Box<dyn FnOnce() -> BoxFuture<'static, Result<Process, OpenError>> + Send>;

/// What a token stands for.
#[derive(Debug)]
struct Waiting {
    route: Route,
    target: Target,
}

/// What a client is given.
enum Target {
    /// A process's streams.
    Process(Streams, Open),
    /// Connections to ports.
    Ports(Ports),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(streams, _) => streams.fmt(f),
            Self::Ports(ports) => ports.fmt(f),
        }
    }
}

impl Server {
    /// Listens on the configured address and serves from then on. Must be called on a runtime.
    ///
    /// # Errors
    ///
    /// [`StreamingError::Listen`].
    pub(crate) fn start(config: &StreamingConfig) -> Result<Self, StreamingError> {
        let (listener, address) =
            listen(config.address).map_err(|source| StreamingError::Listen {
                address: config.address,
                source,
            })?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            tokens: Tokens::new(),
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
            idle: Duration::from_millis(config.idle_timeout_ms),
            stop: stop.clone(),
        });
        let tasks = TaskTracker::new();
        let accept = accept(listener, Arc::clone(&shared), tasks.clone());
        tasks.spawn(async move { stop.run_until_cancelled_owned(accept).await });
        Ok(Self {
            shared,
            base: format!("http://{}", reachable(address)),
            tasks,
        })
    }

    /// A URL at which one client can attach. `open` runs when it comes.
    ///
    /// # Errors
    ///
    /// [`TokenError`].
    pub(crate) fn attach_url<F, T>(&self, streams: Streams, open: F) -> Result<String, TokenError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = Result<Process, OpenError>> + Send + 'static,
    {
        let open = Box::new(move || -> BoxFuture<'static, _> { Box::pin(open()) });
        self.url(Route::Attach, Target::Process(streams, open))
    }

    /// A URL at which one client gets a new process's streams. `open` runs when it comes.
    ///
    /// # Errors
    ///
    /// [`TokenError`].
    pub(crate) fn exec_url<F, T>(&self, streams: Streams, open: F) -> Result<String, TokenError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = Result<Process, OpenError>> + Send + 'static,
    {
        let open = Box::new(move || -> BoxFuture<'static, _> { Box::pin(open()) });
        self.url(Route::Exec, Target::Process(streams, open))
    }

    /// A URL at which one client gets connections to ports.
    ///
    /// # Errors
    ///
    /// [`TokenError`].
    pub(crate) fn port_forward_url(&self, ports: Ports) -> Result<String, TokenError> {
        self.url(Route::PortForward, Target::Ports(ports))
    }

    fn url(&self, route: Route, target: Target) -> Result<String, TokenError> {
        let token = self.shared.tokens.put(Waiting { route, target })?;
        Ok(format!("{}/{}/{token}", self.base, route.name()))
    }

    /// Stops listening, tells the clients to leave and waits for them a little.
    pub(crate) async fn shut_down(&self) {
        self.shared.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            debug!(sessions = self.tasks.len(), "streams are cut off");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it: a client that vanished is noticed in the end.
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// An address that this node's clients can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker) {
    let requests = Arc::new(Semaphore::new(REQUESTS_MAX));
    loop {
        let permit = Arc::clone(&requests).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((connection, client)) => {
                let span = info_span!("stream", %client);
                let served = serve(connection, Arc::clone(&shared), tasks.clone(), permit);
                tasks.spawn(served.instrument(span));
            }
            Err(error) => {
                warn!(%error, "no connection could be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection up to its upgrade.
async fn serve(
    connection: TcpStream,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    permit: OwnedSemaphorePermit,
) {
    // Keystrokes must not wait for each other's acknowledgements.
    if let Err(error) = connection.set_nodelay(true) {
        debug!(%error, "the connection broke before its request");
        return;
    }
    let stop = shared.stop.clone();
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        let tasks = tasks.clone();
        async move { Ok::<_, Infallible>(answer(request, shared, &tasks).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(REQUEST_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    let served = tokio::time::timeout(CONNECTION_TIMEOUT, connection);
    match stop.run_until_cancelled(served).await {
        Some(Ok(Err(error))) => debug!(%error, "a client's request cannot be served"),
        Some(Err(_late)) => debug!("a client's request took too long"),
        Some(Ok(Ok(()))) | None => {}
    }
    drop(permit);
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    tasks: &TaskTracker,
) -> Response<String> {
    let (prepared, response) = match Prepared::new(&request, &shared) {
        Ok(prepared) => prepared,
        Err(refusal) => {
            debug!(?refusal, "a client gets no stream");
            return refusal.response();
        }
    };
    let (opened, is_open) = oneshot::channel();
    // A task of its own: a client that leaves now must not stop the opening in the middle.
    let session = prepared.run(request, opened);
    tasks.spawn(session.in_current_span());
    // An error is the daemon's stop: the connection ends as well.
    let _stopped = is_open.await;
    response
}

/// A request that will be a session.
struct Prepared {
    way: Way,
    session: Session,
    target: Target,
    permit: OwnedSemaphorePermit,
}

impl Prepared {
    fn new(
        request: &Request<Incoming>,
        shared: &Shared,
    ) -> Result<(Self, Response<String>), Refusal> {
        let unknown = || Refusal::new(StatusCode::NOT_FOUND, "no such stream, or no longer");
        let (route, token) = Route::parse(request.uri().path()).ok_or_else(unknown)?;
        let (way, response) = negotiate(request, route)?;
        let permit = Arc::clone(&shared.sessions)
            .try_acquire_owned()
            .map_err(|_full| {
                let message = format!("{SESSIONS_MAX} streams are open; try again later");
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
            })?;
        let fits = |waiting: &Waiting| waiting.route == route;
        let waiting = shared.tokens.take(token, fits).ok_or_else(unknown)?;
        let prepared = Self {
            way,
            session: Session {
                idle: shared.idle,
                stop: shared.stop.clone(),
            },
            target: waiting.target,
            permit,
        };
        Ok((prepared, response))
    }

    async fn run(self, mut request: Request<Incoming>, opened: oneshot::Sender<()>) {
        let (way, session) = (self.way, self.session);
        let given = match self.target {
            Target::Process(streams, open) => {
                let Some(process) = session.stop.run_until_cancelled(open()).await else {
                    return;
                };
                Given::Process(streams, process)
            }
            Target::Ports(ports) => Given::Ports(ports),
        };
        if opened.send(()).is_err() {
            debug!("the client left while its stream was opened");
            return;
        }
        match hyper::upgrade::on(&mut request).await {
            Ok(connection) => given.serve(way, session, connection).await,
            Err(error) => debug!(%error, "the client left before its stream began"),
        }
        drop(self.permit);
    }
}

/// What a client is given, opened.
enum Given {
    Process(Streams, Result<Process, OpenError>),
    Ports(Ports),
}

impl Given {
    async fn serve(self, way: Way, session: Session, connection: Upgraded) {
        let connection = TokioIo::new(connection);
        let socket = |connection| {
            let limits = Some(socket_config());
            WebSocketStream::from_raw_socket(connection, Role::Server, limits)
        };
        match (self, way) {
            (Self::Process(streams, process), Way::WebSocket(version)) => {
                let channels = ChannelSession {
                    session,
                    version,
                    streams,
                };
                channels.run(socket(connection).await, process).await;
            }
            (Self::Process(streams, process), Way::Spdy(version)) => {
                let command = RemoteCommand {
                    session,
                    version,
                    streams,
                };
                command.run(connection, process).await;
            }
            (Self::Ports(ports), Way::Ports) => {
                PortForward { session, ports }.run(connection).await;
            }
            (Self::Ports(ports), Way::TunnelledPorts) => {
                let tunnel = Tunnel::new(socket(connection).await);
                PortForward { session, ports }.run(tunnel).await;
            }
            (Self::Process(..), Way::Ports | Way::TunnelledPorts)
            | (Self::Ports(_), Way::WebSocket(_) | Way::Spdy(_)) => {
                unreachable!("the way was negotiated for the token's route")
            }
        }
    }
}

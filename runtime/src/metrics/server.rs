//! Answers `GET /metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Metrics;

/// OpenMetrics 1.0, section "Text Format".
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Most connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;

/// How long a connection may take, from its first byte to the last of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest request, in bytes.
const REQUEST_MAX: usize = 16 * 1024;

/// How long to wait after the kernel could give no connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("listening for metrics on {address}")]
pub(crate) struct MetricsError {
    /// `[metrics] address`.
    address: SocketAddr,
    /// What the kernel said.
    #[source]
    source: std::io::Error,
}

/// The endpoint. Dropped, it is closed.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    _stop: DropGuard,
}

impl MetricsServer {
    /// Listens, and answers from then on.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on.
    pub(crate) async fn start(
        address: SocketAddr,
        metrics: Arc<Metrics>,
    ) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "metrics");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            stopped
                .run_until_cancelled_owned(accept(listener, metrics))
                .await;
        });
        Ok(Self {
            _stop: stop.drop_guard(),
        })
    }
}

async fn accept(listener: TcpListener, metrics: Arc<Metrics>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = Arc::clone(&metrics);
                tokio::spawn(async move {
                    let served = serve(stream, metrics);
                    let _late = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One request to a connection.
async fn serve(stream: TcpStream, metrics: Arc<Metrics>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&metrics)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(REQUEST_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection for metrics");
    }
}

async fn answer(
    request: Request<Incoming>,
    metrics: Arc<Metrics>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/metrics" {
        return Ok(said(StatusCode::NOT_FOUND, "metrics are at /metrics\n"));
    }
    if request.method() != Method::GET {
        return Ok(said(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"));
    }
    let text = tokio::task::spawn_blocking(move || metrics.text()).await;
    Ok(match text {
        Ok(Ok(text)) => {
            let mut response = Response::new(Full::from(text));
            let kind = http::HeaderValue::from_static(TEXT);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        _ => said(StatusCode::INTERNAL_SERVER_ERROR, "they cannot be told\n"),
    })
}

fn said(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

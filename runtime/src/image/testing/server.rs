//! An HTTP server that answers whatever a test tells it to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What was asked.
#[derive(Debug, Clone)]
pub(in crate::image) struct Asked {
    /// `GET` or `POST`.
    pub(in crate::image) method: String,
    /// Path and query.
    pub(in crate::image) path: String,
    /// By lower-case name.
    pub(in crate::image) headers: HashMap<String, String>,
    /// The body.
    pub(in crate::image) body: String,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(in crate::image) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which something happens.
    stop: Option<(usize, Stop)>,
    /// Bytes sent at a time, and the pause after them.
    pace: Option<(usize, Duration)>,
}

/// What happens in the middle of a body.
#[derive(Debug, Clone, Copy)]
enum Stop {
    Close,
    Hang,
    Forever,
}

impl Reply {
    pub(in crate::image) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            stop: None,
            pace: None,
        }
    }

    pub(in crate::image) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The connection breaks after so many bytes of the body.
    pub(in crate::image) fn breaking(mut self, after: usize) -> Self {
        self.stop = Some((after, Stop::Close));
        self
    }

    /// Nothing comes any more after so many bytes of the body.
    pub(in crate::image) fn hanging(mut self, after: usize) -> Self {
        self.stop = Some((after, Stop::Hang));
        self
    }

    /// The body is repeated without end, and its length not told.
    pub(in crate::image) fn endless(mut self) -> Self {
        self.stop = Some((0, Stop::Forever));
        self
    }

    /// A few bytes, then a pause, and so on.
    pub(in crate::image) fn slow(mut self, bytes: usize, pause: Duration) -> Self {
        self.pace = Some((bytes, pause));
        self
    }
}

/// A running server; dropping it ends it.
#[derive(Debug)]
pub(in crate::image) struct Server {
    host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on a loopback port.
    pub(in crate::image) async fn start(
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(None, answer).await
    }

    /// The same over TLS.
    pub(in crate::image) async fn start_tls(
        tls: TlsAcceptor,
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(Some(tls), answer).await
    }

    async fn start_with(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                let tls = tls.clone();
                connections.spawn(async move {
                    // A client that goes away is none of the server's business.
                    let _ = match tls {
                        None => serve(connection, &*answer, &log).await,
                        Some(tls) => match tls.accept(connection).await {
                            Ok(connection) => serve(connection, &*answer, &log).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        Self { host, asked, task }
    }

    /// `127.0.0.1:<port>`.
    pub(in crate::image) fn host(&self) -> String {
        self.host.clone()
    }

    /// Everything that was asked so far.
    pub(in crate::image) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics there").clone()
    }

    /// How often something was asked whose path contains this.
    pub(in crate::image) fn count(&self, part: &str) -> usize {
        self.asked()
            .iter()
            .filter(|asked| asked.path.contains(part))
            .count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    connection: impl AsyncRead + AsyncWrite,
    answer: &(impl Fn(&Asked) -> Reply + ?Sized),
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let (reader, mut writer) = tokio::io::split(connection);
    let mut lines = BufReader::new(reader);
    let mut line = String::new();
    lines.read_line(&mut line).await?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(());
    };
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |text| text.parse().expect("a length"));
    let mut body = vec![0; length];
    lines.read_exact(&mut body).await?;
    let body = String::from_utf8(body).expect("a form");
    let asked = Asked {
        method,
        path,
        headers,
        body,
    };
    let reply = answer(&asked);
    log.lock().expect("no test panics there").push(asked);
    send(&mut writer, &reply).await?;
    writer.shutdown().await
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {} Whatever\r\nConnection: close\r\n",
        reply.status
    );
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !matches!(reply.stop, Some((_, Stop::Forever))) {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    head.push_str("\r\n");
    writer.write_all(head.as_bytes()).await?;
    let end = reply.stop.map_or(reply.body.len(), |(end, _)| end);
    let (step, pause) = reply.pace.unwrap_or((usize::MAX, Duration::ZERO));
    for part in reply.body[..end].chunks(step) {
        writer.write_all(part).await?;
        tokio::time::sleep(pause).await;
    }
    match reply.stop {
        Some((_, Stop::Hang)) => std::future::pending().await,
        Some((_, Stop::Forever)) => loop {
            writer.write_all(&reply.body).await?;
        },
        Some((_, Stop::Close)) | None => Ok(()),
    }
}

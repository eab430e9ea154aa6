//! A registry that misbehaves: serves one small image over HTTP, with one fault.
//!
//! It answers every repository and tag with the same image, a connection per request. A thread
//! accepts, and one more per connection answers; all end when the registry is dropped.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::images::busybox;
use crate::images::layer::{Compression, LayerWriter, digest};
use crate::images::oci::{ImageDigests, ImageWriter, MANIFEST, blob_path};

/// What is wrong with the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// A byte of the layer differs from what its digest says.
    CorruptLayer,
    /// The layer is half as long as the manifest says, in a complete answer.
    TruncatedLayer,
    /// The connection breaks in the middle of the layer, every time.
    BrokenConnection,
    /// The registry goes away in the middle of the layer and never comes back.
    Gone,
    /// The layer stops in its middle and nothing more comes.
    Stalled,
    /// The manifest is not the one whose digest was asked for.
    OtherManifest,
    /// The manifest is not JSON.
    BrokenManifest,
    /// The configuration is another one than its digest says.
    CorruptConfig,
    /// The configuration promises another uncompressed layer than the one there is.
    WrongDiffId,
    /// The answer to everything is 401 with a challenge that names no token server.
    Unauthorized,
    /// The answer to everything is 500.
    Failing,
}

/// A running registry; dropping it ends it.
#[derive(Debug)]
pub struct Tampered {
    served: Arc<Served>,
    acceptor: Option<JoinHandle<()>>,
    port: u16,
    image: ImageDigests,
}

#[derive(Debug)]
struct Served {
    layout: TempDir,
    fault: Fault,
    manifest: String,
    config: String,
    layer: String,
    gone: AtomicBool,
    /// Requests for the layer so far.
    layer_requests: AtomicUsize,
    /// Kept to be cut off at the end.
    connections: Mutex<Vec<TcpStream>>,
}

impl Tampered {
    /// Serves busybox with a fault.
    ///
    /// # Errors
    /// The image cannot be made.
    pub fn busybox(fault: Fault) -> Result<Self> {
        Self::serve(fault, &busybox::config(&["/bin/sh"]), busybox::base)
    }

    /// Serves an image of one layer, with this configuration.
    ///
    /// # Errors
    /// The image cannot be made.
    pub fn serve(
        fault: Fault,
        config: &Value,
        fill: impl FnOnce(&mut LayerWriter) -> Result<()>,
    ) -> Result<Self> {
        let layout = tempfile::Builder::new()
            .prefix("isopod-tampered-")
            .tempdir()?;
        let mut image = ImageWriter::new(layout.path())?;
        image.layer(Compression::Gzip, fill)?;
        if fault == Fault::WrongDiffId {
            image.forge_diff_id(digest(b"something else"));
        }
        let image = image.finish(config)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let served = Arc::new(Served {
            layout,
            fault,
            manifest: image.manifest.clone(),
            config: image.config.clone(),
            layer: image.layers[0].digest.clone(),
            gone: AtomicBool::new(false),
            layer_requests: AtomicUsize::new(0),
            connections: Mutex::default(),
        });
        let accepting = Arc::clone(&served);
        let acceptor = std::thread::Builder::new()
            .name("tampered-registry".into())
            .spawn(move || accept(&listener, &accepting))?;
        Ok(Self {
            served,
            acceptor: Some(acceptor),
            port,
            image,
        })
    }

    /// `127.0.0.1:<port>`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The image's digests, as they are without the fault.
    #[must_use]
    pub fn image(&self) -> &ImageDigests {
        &self.image
    }

    /// How often the layer was asked for.
    #[must_use]
    pub fn layer_requests(&self) -> usize {
        self.served.layer_requests.load(Ordering::SeqCst)
    }
}

impl Drop for Tampered {
    fn drop(&mut self) {
        self.served.go();
        // Wakes the acceptor, if it still waits.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Served {
    /// Ends every connection, now and later.
    fn go(&self) {
        self.gone.store(true, Ordering::SeqCst);
        for connection in self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            // It may have ended by itself.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, served: &Arc<Served>) {
    for connection in listener.incoming().flatten() {
        if served.gone.load(Ordering::SeqCst) {
            return;
        }
        if let Ok(clone) = connection.try_clone() {
            served
                .connections
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(clone);
        }
        let serving = Arc::clone(served);
        let thread = std::thread::Builder::new().name("tampered-connection".into());
        // A client that leaves early is no failure of the test.
        let _ = thread.spawn(move || {
            let _ = answer(connection, &serving);
        });
    }
}

/// An answer's body, and how much of it is sent.
struct Answer {
    status: &'static str,
    media_type: &'static str,
    headers: String,
    body: Vec<u8>,
    sent: usize,
}

impl Answer {
    fn new(status: &'static str, media_type: &'static str, body: Vec<u8>) -> Self {
        Self {
            status,
            media_type,
            headers: String::new(),
            sent: body.len(),
            body,
        }
    }
}

fn answer(mut connection: TcpStream, served: &Served) -> Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(connection.try_clone()?.take(64 * 1024));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut words = request.split_whitespace();
    let method = words.next().context("no method")?.to_owned();
    // Without the query, in which a mirror's client names the registry it means (`ns`).
    let path = words
        .next()
        .context("no path")?
        .split('?')
        .next()
        .unwrap_or_default()
        .to_owned();
    let answer = choose(&path, served)?;
    write!(
        connection,
        "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\n{}Connection: close\r\n\r\n",
        answer.status,
        answer.media_type,
        answer.body.len(),
        answer.headers,
    )?;
    if method == "HEAD" {
        return Ok(());
    }
    connection.write_all(&answer.body[..answer.sent])?;
    if answer.sent < answer.body.len() {
        match served.fault {
            Fault::Gone => served.go(),
            // Until the registry is dropped, which shuts the connection down.
            Fault::Stalled => {
                connection.set_read_timeout(None)?;
                let _ = connection.read(&mut [0])?;
            }
            _ => {}
        }
    }
    connection.shutdown(Shutdown::Both)?;
    Ok(())
}

fn choose(path: &str, served: &Served) -> Result<Answer> {
    match served.fault {
        Fault::Failing => {
            let body = br#"{"errors":[{"code":"UNKNOWN","message":"on fire"}]}"#.to_vec();
            return Ok(Answer::new(
                "500 Internal Server Error",
                "application/json",
                body,
            ));
        }
        Fault::Unauthorized => {
            let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#.to_vec();
            let mut answer = Answer::new("401 Unauthorized", "application/json", body);
            answer.headers = "WWW-Authenticate: Basic realm=\"tests\"\r\n".into();
            return Ok(answer);
        }
        _ => {}
    }
    let blob = |digest: &str| std::fs::read(blob_path(served.layout.path(), digest));
    if path.trim_end_matches('/') == "/v2" {
        return Ok(Answer::new("200 OK", "application/json", b"{}".to_vec()));
    }
    if path.contains("/manifests/") {
        let mut body = blob(&served.manifest)?;
        match served.fault {
            Fault::OtherManifest => body.push(b'\n'),
            Fault::BrokenManifest => body.truncate(body.len() / 2),
            _ => {}
        }
        return Ok(Answer::new("200 OK", MANIFEST, body));
    }
    if path.ends_with(&served.config) {
        let mut body = blob(&served.config)?;
        if served.fault == Fault::CorruptConfig {
            body.push(b'\n');
        }
        return Ok(Answer::new("200 OK", "application/octet-stream", body));
    }
    if path.ends_with(&served.layer) {
        served.layer_requests.fetch_add(1, Ordering::SeqCst);
        return Ok(layer(blob(&served.layer)?, served.fault));
    }
    let body = br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
    Ok(Answer::new(
        "404 Not Found",
        "application/json",
        body.to_vec(),
    ))
}

fn layer(mut body: Vec<u8>, fault: Fault) -> Answer {
    let half = body.len() / 2;
    match fault {
        Fault::CorruptLayer => body[half] ^= 0xff,
        Fault::TruncatedLayer => body.truncate(half),
        _ => {}
    }
    let mut answer = Answer::new("200 OK", "application/octet-stream", body);
    if matches!(
        fault,
        Fault::BrokenConnection | Fault::Gone | Fault::Stalled
    ) {
        answer.sent = half;
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(registry: &Tampered, path: &str) -> String {
        let mut connection = TcpStream::connect(registry.host()).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        // A connection that is cut off ends like one that is closed.
        let _ = connection.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn tiny(fault: Fault) -> Tampered {
        Tampered::serve(fault, &serde_json::json!({}), |layer| {
            layer.add(&crate::images::layer::Entry::file("file", "text"))
        })
        .unwrap()
    }

    #[test]
    fn a_registry_without_fault_serves_manifest_and_blobs() {
        let registry = tiny(Fault::None);
        let manifest = get(&registry, "/v2/any/manifests/1");
        assert!(manifest.contains(&registry.image().config), "{manifest}");
        let layer = format!("/v2/any/blobs/{}", registry.image().layers[0].digest);
        assert!(get(&registry, &layer).starts_with("HTTP/1.1 200"));
        assert!(get(&registry, "/v2/any/blobs/sha256:00").starts_with("HTTP/1.1 404"));
        assert_eq!(registry.layer_requests(), 1);
    }

    #[test]
    fn a_registry_that_goes_away_refuses_later_connections() {
        let mut registry = tiny(Fault::Gone);
        let layer = format!("/v2/any/blobs/{}", registry.image().layers[0].digest);
        assert!(get(&registry, &layer).starts_with("HTTP/1.1 200"));
        let _ = TcpStream::connect(registry.host());
        registry.acceptor.take().unwrap().join().unwrap();
        assert!(TcpStream::connect(registry.host()).is_err());
    }
}

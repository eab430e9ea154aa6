//! A layout, served as a registry: `GET` of manifests and blobs, and ranges of them.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::{Layout, LayoutError, NamedImage};
use crate::image::digest::Digest;

/// Bytes read and sent at a time.
const PART: usize = 256 << 10;

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// A layout that is served until this is dropped.
#[derive(Debug)]
pub(crate) struct Served {
    socket: PathBuf,
    present: Arc<Mutex<Option<NamedImage>>>,
    task: JoinHandle<()>,
}

impl Served {
    /// Listens at `socket`, which is not there yet. Must be called on a runtime.
    ///
    /// # Errors
    /// [`LayoutError::Listen`].
    pub(crate) fn start(layout: Layout, socket: &Path) -> Result<Self, LayoutError> {
        let listener = UnixListener::bind(socket).map_err(|source| LayoutError::Listen {
            path: socket.to_owned(),
            source,
        })?;
        let present = Arc::new(Mutex::new(None));
        let task = tokio::spawn(accept(listener, layout, Arc::clone(&present)));
        Ok(Self {
            socket: socket.to_owned(),
            present,
            task,
        })
    }

    /// Every tag is this image's from now on.
    pub(crate) fn offer(&self, image: &NamedImage) {
        *self.present.lock().unwrap_or_else(PoisonError::into_inner) = Some(image.clone());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
        // It may be gone with its folder.
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn accept(listener: UnixListener, layout: Layout, present: Arc<Mutex<Option<NamedImage>>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        let (layout, present) = (layout.clone(), Arc::clone(&present));
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let image = present
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let answer = layout.answer(&request, image.as_ref());
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new().serve_connection(TokioIo::new(connection), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection of the daemon's");
            }
        });
    }
}

impl Layout {
    /// `/v2/<repository>/<kind>/<name>`. Opens a file: blocking, for that time.
    fn answer(&self, request: &Request<Incoming>, image: Option<&NamedImage>) -> Answer {
        let mut path = request.uri().path().rsplit('/');
        let (name, kind) = (path.next().unwrap_or_default(), path.next());
        let target = match (name.parse::<Digest>(), image) {
            (Ok(digest), _) => Some(digest),
            (Err(_tag), Some(image)) if kind == Some("manifests") => image.target,
            _ => return empty(StatusCode::NOT_FOUND),
        };
        let Some(digest) = target else {
            return Response::new(whole(self.index.clone()));
        };
        match self.blob(&digest) {
            Ok(blob) => part_of(blob, request),
            Err(error) if error.kind() == io::ErrorKind::NotFound => empty(StatusCode::NOT_FOUND),
            Err(_unreadable) => empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// The blob, or what of it the request's range begins with.
fn part_of((file, offset, length): (File, u64, u64), request: &Request<Incoming>) -> Answer {
    let start = request
        .headers()
        .get(RANGE)
        .and_then(|range| {
            range
                .to_str()
                .ok()?
                .strip_prefix("bytes=")?
                .strip_suffix('-')
        })
        .and_then(|start| start.parse::<u64>().ok())
        .filter(|start| *start < length);
    let from = start.unwrap_or(0);
    let body = StreamBody::new(read(file, offset + from, length - from));
    let mut answer = Response::builder()
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_LENGTH, length - from);
    if start.is_some() {
        let range = format!("bytes {from}-{}/{length}", length - 1);
        answer = answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, range);
    }
    answer
        .body(body.boxed_unsync())
        .expect("numbers make good headers")
}

/// The file's bytes from `offset` on.
fn read(
    file: File,
    offset: u64,
    length: u64,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send {
    let state = (Arc::new(file), offset, length);
    stream::unfold(state, |(file, offset, left)| async move {
        if left == 0 {
            return None;
        }
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(PART);
        let reader = Arc::clone(&file);
        let part = tokio::task::spawn_blocking(move || {
            let mut part = BytesMut::zeroed(length);
            reader.read_exact_at(&mut part, offset)?;
            Ok(Frame::data(part.freeze()))
        });
        let part = part
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        let step = length as u64;
        Some((part, (file, offset + step, left - step)))
    })
}

fn whole(data: Bytes) -> UnsyncBoxBody<Bytes, io::Error> {
    Full::new(data)
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(whole(Bytes::new()));
    *answer.status_mut() = status;
    answer
}

//! From a configuration to a socket that answers, and back.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use isopod_proto::cri::image_service_server::ImageServiceServer;
use isopod_proto::cri::runtime_service_server::RuntimeServiceServer;
use isopod_proto::images::images_server::ImagesServer;
use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use super::image::ImageApi;
use super::images::ImagesApi;
use super::{Cri, get_container_events, notify};
use crate::chain::chain;
use crate::config::Config;
use crate::container::Containers;
use crate::events::Events;
use crate::image::{ImageError, ImageStore, sweep_places};
use crate::metrics::{Measure, Metrics, MetricsError, MetricsServer};
use crate::network::{NetworkError, Networks};
use crate::record::{RecordError, Records};
use crate::sandbox::{SandboxError, Sandboxes};
use crate::streaming::{self, StreamingError};

/// Largest message, in bytes, as in containerd.
const MESSAGE_MAX: usize = 16 << 20;

/// How long calls may go on once the daemon was told to stop.
const DRAIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// The server could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// A file or socket.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another daemon works on the same folders.
    #[error("another isopod uses {}", .0.display())]
    Locked(PathBuf),
    /// The images.
    #[error("opening the image store")]
    Images(#[from] ImageError),
    /// The records.
    #[error("opening the records")]
    Records(#[from] RecordError),
    /// What is recorded of the networks.
    #[error("opening the networks")]
    Networks(#[from] NetworkError),
    /// The sandboxes of an earlier daemon.
    #[error("recovering the sandboxes")]
    Sandboxes(#[from] SandboxError),
    /// The streaming server.
    #[error(transparent)]
    Streaming(#[from] StreamingError),
    /// The metrics' endpoint.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The gRPC server.
    #[error("serving the CRI")]
    Grpc(#[from] tonic::transport::Error),
}

impl ServeError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Serves the CRI until SIGTERM or SIGINT. Pods keep running when it returns.
///
/// # Errors
///
/// [`ServeError`] when the folders, the records or the socket cannot be opened.
pub(crate) async fn serve(config: Config) -> Result<(), ServeError> {
    let _locks = (lock(&config.state_dir)?, lock(&config.root_dir)?);
    let images = ImageStore::open(&config.root_dir.join("images"), &config.registry)?;
    let records = Records::open(&config.root_dir)?;
    let networks = Networks::open(&config.cni, &config.root_dir, records.clone())?;
    let networks = Arc::new(networks);
    let events = Arc::<Events>::default();
    let sandboxes = Sandboxes::open(
        &config,
        records.clone(),
        Arc::clone(&networks),
        Arc::clone(&events),
    )?;
    let sandboxes = Arc::new(sandboxes);
    let containers = Containers::new(
        images.clone(),
        config.vm.image_device,
        records,
        Arc::clone(&events),
    );
    let containers = Arc::new(containers);
    get_container_events::describe_pods(&events, Arc::downgrade(&containers));
    recover(&sandboxes, &containers).await?;
    let recovered = Arc::clone(&sandboxes);
    tokio::spawn(async move { recovered.check_networks().await });
    let streaming = Arc::new(streaming::Server::start(&config.streaming)?);
    let metrics = Metrics::new(Arc::clone(&sandboxes), Arc::clone(&containers));
    let metrics = Arc::new(metrics);
    let _metrics = match config.metrics.address() {
        Ok(Some(address)) => Some(MetricsServer::start(address, Arc::clone(&metrics)).await?),
        // What is not an address was refused when the configuration was read.
        Ok(None) | Err(_) => None,
    };
    sweep_places(config.socket.parent().unwrap_or(Path::new("/")));
    let listener = listen(&config.socket)?;
    let socket = config.socket.clone();
    let cri = Cri {
        config: Arc::new(config),
        sandboxes,
        containers,
        events: Arc::clone(&events),
        networks,
        streaming: Arc::clone(&streaming),
    };
    let runtime = RuntimeServiceServer::new(cri)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(3 * MESSAGE_MAX);
    let beyond = ImagesServer::new(ImagesApi::new(images.clone()));
    let images = ImageServiceServer::new(ImageApi::new(Arc::new(images)))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    tracing::info!(socket = %socket.display(), "ready");
    if let Err(error) = notify::ready() {
        tracing::warn!(%error, "could not tell the service manager");
    }
    let stopped = told_to_stop();
    tokio::pin!(stopped);
    let (drain, drained) = tokio::sync::oneshot::channel();
    let server = tonic::transport::Server::builder()
        .layer(Measure(metrics))
        .add_service(runtime)
        .add_service(images)
        .add_service(beyond)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            let _told = drained.await;
        });
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => served?,
        () = &mut stopped => {
            tracing::info!("stopping; the pods keep running");
            let _told = drain.send(());
            events.close();
            // What is left then is finished or undone by the next daemon.
            let _cut_off = tokio::time::timeout(DRAIN_LIMIT, server).await;
        }
    }
    streaming.shut_down().await;
    fs::remove_file(&socket).map_err(ServeError::io("removing", &socket))
}

/// Sandboxes first, since containers are in them; then the containers of all of them at once.
async fn recover(
    sandboxes: &Arc<Sandboxes>,
    containers: &Arc<Containers>,
) -> Result<(), ServeError> {
    let found = sandboxes.recover().await?;
    join_all(found.iter().map(|sandbox| async {
        if let Err(error) = containers.recover(sandbox).await {
            let error = chain(&error);
            tracing::error!(sandbox_id = %sandbox.id, error, "could not recover the containers");
        }
    }))
    .await;
    Ok(())
}

/// Makes a folder and keeps every other daemon out of it until the descriptor is closed.
fn lock(dir: &Path) -> Result<File, ServeError> {
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(ServeError::io("creating", dir))?;
    let folder = File::open(dir).map_err(ServeError::io("opening", dir))?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ServeError::Locked(dir.to_owned())),
        Err(error) => Err(ServeError::io("locking", dir)(error.into())),
    }
}

/// Takes the place of a socket that an earlier daemon left, which the lock says is gone.
fn listen(socket: &Path) -> Result<UnixListener, ServeError> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).map_err(ServeError::io("creating", dir))?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ServeError::io("replacing", socket)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(ServeError::io("listening on", socket))?;
    // Whoever may write to it is root on this node.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .map_err(ServeError::io("protecting", socket))?;
    Ok(listener)
}

async fn told_to_stop() {
    let signals = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        tracing::warn!("signals cannot be caught; the daemon ends when it is killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

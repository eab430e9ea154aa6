//! The commands' way to the daemon: its CRI socket.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isopod_proto::cri::image_service_client::ImageServiceClient;
use isopod_proto::cri::runtime_service_client::RuntimeServiceClient;
use isopod_proto::images::images_client::ImagesClient;
use tonic::transport::{Channel, Endpoint};

/// Largest answer, in bytes: lists of everything on a node are long.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// How long the daemon may take to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The daemon cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody answers on the socket.
    #[error(
        "no daemon answers on {}: {reason} (is `isopod serve` running, and are you root?)",
        socket.display()
    )]
    Connect {
        /// The CRI socket.
        socket: PathBuf,
        /// Why: the last of tonic's causes, which repeat each other.
        reason: String,
    },
    /// The socket's path is none.
    #[error("{} cannot be a socket's path", socket.display())]
    Path {
        /// The path.
        socket: PathBuf,
    },
}

/// The daemon's services over one connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// Pods and containers.
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    /// Images, as the CRI has them.
    pub(crate) image: ImageServiceClient<Channel>,
    /// Images, as people want them.
    pub(crate) images: ImagesClient<Channel>,
}

impl Client {
    /// Connects to a CRI socket.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub(crate) async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let path = || ClientError::Path {
            socket: socket.to_owned(),
        };
        let uri = format!("unix://{}", socket.to_str().ok_or_else(path)?);
        let endpoint = Endpoint::from_shared(uri).map_err(|_invalid| path())?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
        let channel = channel.map_err(|error| ClientError::Connect {
            socket: socket.to_owned(),
            reason: last_cause(&error),
        })?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(ANSWER_MAX),
            image: ImageServiceClient::new(channel.clone()).max_decoding_message_size(ANSWER_MAX),
            images: ImagesClient::new(channel),
        })
    }
}

fn last_cause(mut error: &dyn Error) -> String {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

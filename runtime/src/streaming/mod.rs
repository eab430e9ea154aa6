//! The HTTP server behind Exec, Attach and PortForward, for the kubelet, `crictl` and `isopod run`.
//!
//! The CRI methods register what a client may have and answer with a URL; its token works once and
//! for a minute. [`Server`] listens on the configured address on tasks of its own:
//!
//! ```text
//! accept ── one of a bounded number of connections ──> request ── token taken ──> upgrade ──> session
//!                                                         └─ 4xx, a sentence and no upgrade
//! ```
//!
//! A process's streams are opened *before* the upgrade is answered: a client that is connected
//! misses nothing from then on. The way of streaming is chosen by the request's `Upgrade` header:
//!
//! | | `Upgrade` | session | protocols |
//! |---|---|---|---|
//! | a process | `websocket` | `web_socket` | `v5.channel.k8s.io`, `v4.channel.k8s.io` |
//! | | `SPDY/3.1` | `remote_command` | `v4.channel.k8s.io` and older |
//! | ports | `websocket` | `port_forward` in a `tunnel` | `SPDY/3.1+portforward.k8s.io` |
//! | | `SPDY/3.1` | `port_forward` | `portforward.k8s.io` |

mod activity;
pub(crate) mod channel;
mod port_forward;
mod remote_command;
mod request;
mod server;
mod session;
mod status;
mod token;
mod tunnel;
mod web_socket;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

use futures_util::future::BoxFuture;

pub(crate) use port_forward::Ports;
pub(crate) use server::Server;
pub(crate) use token::TokenError;

use crate::vm::ProcessStream;

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamingError {
    /// The address cannot be listened on.
    #[error("listening for streams on {address}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a process's streams could not be opened, or its exit not be learnt: told to the client.
pub(crate) type OpenError = Box<dyn std::error::Error + Send + Sync>;

/// Which of a process's streams a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streams {
    /// The client sends standard input.
    pub(crate) stdin: bool,
    /// The client gets standard output.
    pub(crate) stdout: bool,
    /// The client gets standard error.
    pub(crate) stderr: bool,
    /// It expects a terminal, which it may resize.
    pub(crate) tty: bool,
}

/// What a process takes from a client. The rest of what the client sends is thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Takes {
    /// Standard input.
    pub(crate) stdin: bool,
    /// The size of its terminal.
    pub(crate) resize: bool,
}

/// An opened process.
pub(crate) struct Process {
    /// Its streams.
    pub(crate) stream: ProcessStream,
    /// What it takes from the client.
    pub(crate) takes: Takes,
    /// For an exec, its exit code; polled when its output has ended, dropped when the client leaves.
    pub(crate) exit: Option<BoxFuture<'static, Result<i32, OpenError>>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

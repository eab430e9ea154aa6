//! Process streams: output to its sinks, input from its senders (framing: [`isopod_proto::stream`]).
//! Connections to ports, for port-forward, come the same way.
//!
//! Each process has one [`Output`] task, which is the only reader of its pipes or terminal, and at
//! most one [`Input`]. Each connection ([`server`]) has one task that reads its frames; what it is
//! sent is written by the output's task (the primary) or by a task of its own (a copy).
//!
//! ```text
//!   stdout ─┐            ┌─> primary sink     awaited: a slow one slows the process down
//!           ├─> Output ──┤
//!   stderr ─┘            └─> copies           a few chunks of patience each, then cut off
//!
//!   stdin  <── Input <──── any connection that was opened with stdin
//! ```
//!
//! The life of an output:
//!
//! ```text
//!                primary connects             end-of-file on all pipes, or the process has
//!   waiting ─────────────────────> flowing ── exited and its pipes were drained ──> ended
//!      ^                              │                                     End to every sink
//!      └──────────────────────────────┘
//!         primary lost; what it was not sent whole is kept for the next one
//! ```

mod copies;
mod input;
mod output;
mod port;
mod server;
mod source;

use isopod_proto::stream::{HEADER_LEN, Header, Kind};

pub(crate) use input::Input;
pub(crate) use output::Output;
pub(crate) use server::{Listener, serve};
pub(crate) use source::Source;

/// The write half of a connection.
pub(crate) type Sink = Box<dyn tokio::io::AsyncWrite + Send + Unpin>;

/// A whole frame whose payload is small.
fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(
        &Header {
            kind,
            len: payload.len(),
        }
        .encode(),
    );
    bytes.extend_from_slice(payload);
    bytes
}

//! A SPDY/3.1 server, as the kubelet's clients need one: the client opens streams, each a pair of
//! byte streams with headers, and all share one connection.
//!
//! The protocol is that of <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1>,
//! without what a browser needs: no priorities, no pushed streams, no credentials.
//!
//! A [`Connection`] has two tasks, and whoever uses its [`Stream`]s has theirs:
//!
//! ```text
//!                    ┌────────┐  a channel of Incoming     accept
//!  peer ── frames ──>│ reader │──────────────────────────> refuse
//!                    │        │  each stream's inbox
//!                    │        │──────────────────────────> StreamReader
//!                    └───┬────┘
//!                        │ pings, refusals
//!                    ┌───v────┐  a queue for control frames, goes first
//!  peer <─ frames ───│ writer │<────────────────────────── accept, refuse, reset
//!                    │        │  a short queue for data
//!                    └────────┘<────────────────────────── StreamWriter
//! ```
//!
//! # What a peer can make us keep
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | a control frame | [`decode::CONTROL_MAX`] | the connection ends |
//! | a header block, decompressed | [`headers::BLOCK_MAX`] | the connection ends |
//! | open streams | chosen by the user | refused |
//! | data that was received and not consumed, of all streams | [`INBOUND_MAX`] | nothing more is read |
//! | answers that the peer does not read | [`ANSWERS_MAX`] | nothing more is read |
//! | data that the peer does not read | a few pieces | writers wait |
//!
//! # Flow control
//!
//! Windows are announced as data is consumed, for those who heed them, and the peer's are heeded as
//! soon as it has spoken of any. The clients of Kubernetes never do: they neither keep to a window nor
//! widen one, so what holds them back is the connection itself. A stream that is not read can
//! therefore hold up the others when [`INBOUND_MAX`] is used up.

mod connection;
pub mod decode;
mod dictionary;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod headers;
mod shared;
mod stream;
#[cfg(any(test, fuzzing, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod write;

pub use connection::{Connection, Incoming};
pub use frame::ResetReason;
pub use headers::Headers;
pub use shared::{ANSWERS_MAX, INBOUND_MAX};
pub use stream::{Stream, StreamError, StreamReader, StreamWriter};

//! A process's streams as the channels of a WebSocket.
//!
//! ```text
//!            ProcessInput <── input ── WebSocket messages from the client
//! process                                                                   client
//!            ProcessOutput ── output ─> WebSocket messages to the client
//! ```
//!
//! The directions do not wait for each other. In each, who does not take slows the giver down: no
//! more than a message is held here. The session ends when the output does (then the client gets a
//! Status), when the client leaves or misbehaves, when nothing has moved for the idle time, or when
//! the daemon stops. Dropping the process's parts is all the cleaning up there is.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as SocketError};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tracing::debug;

use super::activity::Activity;
use super::channel::{self, ClientMessage, MESSAGE_MAX, Version, message};
use super::session::{CLOSE_TIMEOUT, IDLE, STOPPED, Session, pieces};
use super::status::End;
use super::{OpenError, Process, Streams, Takes};
use crate::vm::{Output, ProcessInput, ProcessOutput, StreamError};

/// How often a client is sent a sign of life. When it has vanished, the kernel says so; when it is
/// kept from hearing answers to its own pings because its process takes no input, it stays. (Clients
/// give up after a minute without a pong; RFC 6455 section 5.5.3 allows one that nobody asked for.)
const SIGN_INTERVAL: Duration = Duration::from_secs(20);

/// Longest reason in a close frame: 125 bytes less the code (RFC 6455 section 5.5).
const CLOSE_REASON_MAX: usize = 123;

/// One client's WebSocket.
#[derive(Debug)]
pub(super) struct ChannelSession {
    pub(super) session: Session,
    pub(super) version: Version,
    /// What the client asked for.
    pub(super) streams: Streams,
}

/// Why a session is over.
enum Over {
    /// Tell the client how it went, then close.
    Ended(End),
    /// Close, with a reason.
    Close(CloseCode, String),
    /// There is nobody to tell.
    Gone,
}

/// The limits of a connection: no message of a client is over [`MESSAGE_MAX`].
pub(super) fn socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MESSAGE_MAX)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX))
}

impl ChannelSession {
    /// Moves bytes until the session is over, and closes the connection.
    pub(super) async fn run<S>(self, socket: WebSocketStream<S>, opened: Result<Process, OpenError>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut sink, mut source) = socket.split();
        let over = match opened {
            Ok(process) => self.relay(&mut sink, &mut source, process).await,
            Err(error) => Over::Ended(End::failure(&*error)),
        };
        if timeout(self.session.idle, last_words(&mut sink, over))
            .await
            .is_err()
        {
            debug!("the client did not take the end of its stream");
            return;
        }
        // Until the client hangs up, or the kernel would throw the last words away with the bytes
        // that the client had still sent.
        let hung_up = async { while let Some(Ok(_)) = source.next().await {} };
        if timeout(CLOSE_TIMEOUT, hung_up).await.is_err() {
            debug!("the client did not hang up");
        }
    }

    async fn relay<S>(
        &self,
        sink: &mut SplitSink<WebSocketStream<S>, Message>,
        source: &mut SplitStream<WebSocketStream<S>>,
        process: Process,
    ) -> Over
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Process {
            stream,
            takes,
            exit,
        } = process;
        let (output, input) = stream.split();
        let activity = Activity::new();
        let ended = async {
            match self.relay_output(sink, output, &activity).await {
                Ok(()) => {}
                Err(RelayError::Client) => return Over::Gone,
                Err(RelayError::Process(error)) => return Over::Ended(End::failure(&error)),
            }
            let Some(exit) = exit else {
                return Over::Ended(End::Success);
            };
            match exit.await {
                Ok(code) => Over::Ended(End::Exit(code)),
                Err(error) => Over::Ended(End::failure(&*error)),
            }
        };
        tokio::select! {
            over = ended => over,
            over = self.relay_input(source, (input, takes), &activity) => over,
            () = activity.idle_for(self.session.idle) => Over::Close(CloseCode::Away, IDLE.into()),
            () = self.session.stop.cancelled() => Over::Close(CloseCode::Away, STOPPED.into()),
        }
    }

    /// Sends the process's output until it ends.
    async fn relay_output<K>(
        &self,
        sink: &mut K,
        output: ProcessOutput,
        activity: &Activity,
    ) -> Result<(), RelayError>
    where
        K: Sink<Message, Error = SocketError> + Unpin,
    {
        // What clients take as the sign that the streams are there: on one that they know.
        let first = match (self.streams.stdout, self.streams.stderr) {
            (true, _) => channel::STDOUT,
            (false, true) => channel::STDERR,
            (false, false) => channel::STATUS,
        };
        send(sink, message(first, &[])).await?;
        let mut output = std::pin::pin!(pieces(output));
        let mut sign = interval_at(Instant::now() + SIGN_INTERVAL, SIGN_INTERVAL);
        sign.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let piece = tokio::select! {
                piece = output.next() => piece,
                _ = sign.tick() => {
                    let pong = Message::Pong(Bytes::new());
                    sink.send(pong).await.map_err(|_gone| RelayError::Client)?;
                    continue;
                }
            };
            match piece.transpose().map_err(RelayError::Process)? {
                Some(Output::Stdout(bytes)) if self.streams.stdout => {
                    send(sink, message(channel::STDOUT, &bytes)).await?;
                }
                Some(Output::Stderr(bytes)) if self.streams.stderr => {
                    send(sink, message(channel::STDERR, &bytes)).await?;
                }
                Some(_) => {}
                None => return Ok(()),
            }
            activity.mark();
        }
    }

    /// Gives the client's messages to the process until the client leaves or misbehaves.
    async fn relay_input<S>(
        &self,
        source: &mut SplitStream<WebSocketStream<S>>,
        (input, takes): (ProcessInput, Takes),
        activity: &Activity,
    ) -> Over
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut input = Some(input);
        while let Some(received) = source.next().await {
            let bytes = match received {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Text(text)) => text.into(),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Ok(Message::Close(_)) => return Over::Gone,
                Err(error) => return refusal(&error),
            };
            let message = match ClientMessage::decode(bytes, self.version) {
                Ok(message) => message,
                Err(error) => return Over::Close(CloseCode::Protocol, error.to_string()),
            };
            activity.mark();
            // A process that does not take its input any more is no reason to lose its output: the
            // output side notices the end by itself.
            if let Some(open) = &mut input
                && give(open, takes, message).await.is_err()
            {
                input = None;
            }
            activity.mark();
        }
        Over::Gone
    }
}

async fn give(
    input: &mut ProcessInput,
    takes: Takes,
    message: ClientMessage,
) -> Result<(), StreamError> {
    match message {
        ClientMessage::Stdin(bytes) if takes.stdin => input.write(&bytes).await,
        ClientMessage::StdinClosed if takes.stdin => input.close().await,
        ClientMessage::Resize(size) if takes.resize => input.resize(size.columns, size.rows).await,
        _ => Ok(()),
    }
}

/// Why output stopped moving.
enum RelayError {
    /// The client is gone.
    Client,
    /// The process's stream broke.
    Process(StreamError),
}

async fn send<K>(sink: &mut K, message: Bytes) -> Result<(), RelayError>
where
    K: Sink<Message, Error = SocketError> + Unpin,
{
    let sent = sink.send(Message::Binary(message)).await;
    sent.map_err(|_gone| RelayError::Client)
}

/// What to answer to bytes that are no WebSocket message, or too many for one.
fn refusal(error: &SocketError) -> Over {
    match error {
        SocketError::Capacity(CapacityError::MessageTooLong { .. }) => Over::Close(
            CloseCode::Size,
            format!("messages have at most {MESSAGE_MAX} bytes"),
        ),
        SocketError::Utf8(_) => Over::Close(CloseCode::Invalid, "text must be UTF-8".into()),
        SocketError::Protocol(error) => Over::Close(CloseCode::Protocol, error.to_string()),
        _ => Over::Gone,
    }
}

/// Tells the client how it went and closes. Fails only when the client is gone already.
async fn last_words<K>(sink: &mut K, over: Over) -> Result<(), SocketError>
where
    K: Sink<Message, Error = SocketError> + Unpin,
{
    let (code, mut reason) = match over {
        Over::Ended(end) => {
            let status = end.status().to_string();
            let status = message(channel::STATUS, status.as_bytes());
            sink.send(Message::Binary(status)).await?;
            (CloseCode::Normal, String::new())
        }
        Over::Close(code, reason) => (code, reason),
        Over::Gone => (CloseCode::Normal, String::new()),
    };
    reason.truncate(reason.floor_char_boundary(CLOSE_REASON_MAX));
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    sink.send(Message::Close(Some(frame))).await
}

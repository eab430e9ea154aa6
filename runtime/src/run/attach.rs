//! The command's streams over a WebSocket, and this process's own on the other side.

use std::io::Read;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::error::RunError;
use crate::streaming::channel::{ClientMessage, STATUS, STDERR, STDOUT, Version};

/// Most bytes of standard input in a message.
const INPUT_PIECE: usize = 32 * 1024;

/// Messages that wait for the connection: who types faster waits.
const WAITING_MAX: usize = 4;

/// Both directions of the command's streams.
#[derive(Debug)]
pub(super) struct Attached {
    sink: SplitSink<WebSocketStream<TcpStream>, Message>,
    source: SplitStream<WebSocketStream<TcpStream>>,
}

/// What is known when the streams have ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// When the first byte of output came.
    pub(super) first_output: Option<Instant>,
    /// What the server says went wrong; nothing is missing if nothing did.
    pub(super) failure: Option<String>,
}

impl Attached {
    /// Connects to a stream's URL. From then on no output is missed.
    ///
    /// # Errors
    ///
    /// [`RunError::Attach`].
    pub(super) async fn connect(url: &str) -> Result<Self, RunError> {
        let error = |source: SocketError| RunError::Attach {
            // The token in it is used up.
            url: url.to_owned(),
            source: Box::new(source),
        };
        let address = url.replacen("http://", "ws://", 1);
        let mut request = address.into_client_request().map_err(error)?;
        let protocol = HeaderValue::from_static(Version::V5.name());
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        let host = request.uri().authority().map(ToString::to_string);
        let connection = TcpStream::connect(host.unwrap_or_default()).await;
        let connection = connection.map_err(|source| error(source.into()))?;
        connection
            .set_nodelay(true)
            .map_err(|source| error(source.into()))?;
        let (socket, _response) = client_async(request, connection).await.map_err(error)?;
        let (sink, source) = socket.split();
        Ok(Self { sink, source })
    }

    /// Relays until every byte of output was written, whatever becomes of the input.
    ///
    /// # Errors
    ///
    /// [`RunError::Lost`] when the connection ends before the output does, [`RunError::Output`]
    /// when it cannot be written.
    pub(super) async fn relay(
        mut self,
        mut input: mpsc::Receiver<ClientMessage>,
        stdout: impl AsyncWrite + Unpin,
        stderr: impl AsyncWrite + Unpin,
    ) -> Result<Ended, RunError> {
        let sending = async {
            while let Some(message) = input.recv().await {
                // A broken connection ends the output side as well, which says so.
                if self
                    .sink
                    .send(Message::Binary(message.encode()))
                    .await
                    .is_err()
                {
                    break;
                }
            }
            std::future::pending().await
        };
        let result = tokio::select! {
            result = receive(&mut self.source, stdout, stderr) => result?,
            () = sending => unreachable!("it waits for ever"),
        };
        // The server has closed and waits for our word, which is all that is left to say.
        let _gone = self.sink.close().await;
        Ok(result)
    }
}

async fn receive(
    source: &mut SplitStream<WebSocketStream<TcpStream>>,
    mut stdout: impl AsyncWrite + Unpin,
    mut stderr: impl AsyncWrite + Unpin,
) -> Result<Ended, RunError> {
    let mut ended = Ended::default();
    let mut status = None;
    loop {
        let message = match source.next().await {
            Some(Ok(Message::Binary(message))) => message,
            Some(Ok(Message::Close(frame))) => match status {
                Some(failure) => {
                    ended.failure = failure;
                    return Ok(ended);
                }
                None => {
                    let reason = frame.map(|frame| frame.reason.to_string());
                    return Err(RunError::Lost(reason.unwrap_or_default()));
                }
            },
            Some(Ok(_)) => continue,
            Some(Err(error)) => return Err(RunError::Lost(error.to_string())),
            None => return Err(RunError::Lost("the connection broke".to_owned())),
        };
        let Some((channel, payload)) = message.split_first() else {
            continue;
        };
        if payload.is_empty() {
            continue;
        }
        match *channel {
            STDOUT => write(&mut stdout, payload).await?,
            STDERR => write(&mut stderr, payload).await?,
            STATUS => {
                status = Some(failure(payload));
                continue;
            }
            _ => continue,
        }
        ended.first_output.get_or_insert_with(Instant::now);
    }
}

async fn write(output: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), RunError> {
    output.write_all(bytes).await.map_err(RunError::Output)?;
    output.flush().await.map_err(RunError::Output)
}

/// What a Status says went wrong.
fn failure(status: &[u8]) -> Option<String> {
    let status: serde_json::Value = serde_json::from_slice(status).unwrap_or_default();
    if status["status"] == "Success" {
        return None;
    }
    let message = status["message"]
        .as_str()
        .unwrap_or("the daemon does not say why");
    Some(message.to_owned())
}

/// Sends everything that can be read as standard input, and its end. On a thread of its own, which
/// ends with the process: a read cannot be interrupted.
///
/// # Errors
///
/// When the thread cannot be started.
pub(super) fn read_input(
    mut input: impl Read + Send + 'static,
    messages: mpsc::Sender<ClientMessage>,
) -> Result<(), RunError> {
    let reading = move || {
        let mut buffer = vec![0; INPUT_PIECE];
        loop {
            let message = match input.read(&mut buffer) {
                Ok(0) => ClientMessage::StdinClosed,
                Ok(length) => ClientMessage::Stdin(Bytes::copy_from_slice(&buffer[..length])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => ClientMessage::StdinClosed,
            };
            let last = message == ClientMessage::StdinClosed;
            if messages.blocking_send(message).is_err() || last {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(reading);
    thread.map(drop).map_err(|source| RunError::System {
        action: "starting a thread for standard input",
        source,
    })
}

/// A queue for what goes to the command.
pub(super) fn input_queue() -> (mpsc::Sender<ClientMessage>, mpsc::Receiver<ClientMessage>) {
    mpsc::channel(WAITING_MAX)
}

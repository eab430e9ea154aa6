//! Accepts stream connections and reads their frames.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use isopod_proto::agent::{StreamOpen, StreamRole};
use isopod_proto::stream::{HEADER_LEN, Header, HeaderError, Kind};
use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, oneshot};
use tokio_vsock::VsockListener;

use super::output::{Connected, PrimaryTaken};
use super::port::{self, PortError};
use super::{Sink, frame};
use crate::container::{Containers, IdError, LookupError};
use crate::process::Process;

/// Connections that are open at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// Connections to ports that are open at once: so many that processes' streams find room.
const PORTS_MAX: usize = 256;

/// How long a new connection may take to say what it wants.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// After accept(2) failed, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The read half of a connection.
pub(super) type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Where stream connections come from.
#[derive(Debug)]
pub(crate) enum Listener {
    /// In host namespaces.
    Unix(UnixListener),
    /// In a microVM.
    Vsock(VsockListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<(Reader, Sink)> {
        Ok(match self {
            Self::Unix(listener) => {
                let (reader, writer) = listener.accept().await?.0.into_split();
                (Box::new(reader), Box::new(writer))
            }
            Self::Vsock(listener) => {
                let (reader, writer) = listener.accept().await?.0.into_split();
                (Box::new(reader), Box::new(writer))
            }
        })
    }
}

/// A connection that is refused or ended, the text being for the caller.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("not a frame")]
    Header(#[from] HeaderError),
    #[error("the first frame must be Open")]
    NotOpen,
    #[error("the first frame did not come in time")]
    OpenTimeout,
    #[error("not a StreamOpen message")]
    Message(#[from] protobuf::Error),
    #[error("no such stream role")]
    Role,
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    PrimaryTaken(#[from] PrimaryTaken),
    #[error("the process has no standard input")]
    NoInput,
    #[error("a port is 1 to 65535")]
    PortNumber,
    #[error("{PORTS_MAX} connections to ports are open")]
    PortsFull,
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Serves connections until the agent ends.
pub(crate) async fn serve(listener: Listener, containers: Arc<Containers>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let ports = Arc::new(Semaphore::new(PORTS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let (reader, writer) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "accepting a stream connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (containers, ports) = (Arc::clone(&containers), Arc::clone(&ports));
        tokio::spawn(async move {
            connection(reader, writer, &containers, &ports).await;
            drop(permit);
        });
    }
}

async fn connection(reader: Reader, mut writer: Sink, containers: &Containers, ports: &Semaphore) {
    let mut reader = BufReader::new(reader);
    let open = match opened(&mut reader).await {
        Ok(open) => open,
        Err(error) => return refuse(writer, &error).await,
    };
    if open.role.enum_value() == Ok(StreamRole::STREAM_ROLE_PORT) {
        return port(reader, writer, open.port, ports).await;
    }
    let process = match process(&open, containers) {
        Ok(process) => process,
        Err(error) => return refuse(writer, &error).await,
    };
    let claim = match open.role.enum_value() {
        Ok(StreamRole::STREAM_ROLE_PRIMARY) => match process.output.claim() {
            Ok(claim) => Some(claim),
            Err(error) => return refuse(writer, &error.into()).await,
        },
        Ok(StreamRole::STREAM_ROLE_ATTACH) => None,
        Ok(StreamRole::STREAM_ROLE_UNSPECIFIED | StreamRole::STREAM_ROLE_PORT) | Err(_) => {
            return refuse(writer, &StreamError::Role).await;
        }
    };
    if writer.write_all(&frame(Kind::Opened, &[])).await.is_err() {
        return;
    }
    let (mut alive, gone) = oneshot::channel();
    let connected = Connected { sink: writer, gone };
    match claim {
        Some(claim) => process.output.set_primary(connected, claim).await,
        None => process.output.add_copy(connected).await,
    }
    let input = process.input.as_ref().filter(|_| open.stdin);
    tokio::select! {
        result = frames(&mut reader, &process, open.stdin) => if let Err(error) = result {
            tracing::debug!(error = crate::service::chain(&error), "a stream connection ended");
        },
        () = alive.closed() => {}
    }
    if let Some(input) = input {
        input.sender_done().await;
    }
}

/// Connects to a port, and moves bytes.
async fn port(mut reader: BufReader<Reader>, mut writer: Sink, number: u32, ports: &Semaphore) {
    let connected = async {
        let number = u16::try_from(number).ok().filter(|number| *number > 0);
        let number = number.ok_or(StreamError::PortNumber)?;
        let permit = ports
            .try_acquire()
            .map_err(|_full| StreamError::PortsFull)?;
        Ok((port::connect(number).await?, permit))
    };
    let (connection, permit) = match connected.await {
        Ok(connected) => connected,
        Err(error) => return refuse(writer, &error).await,
    };
    if writer.write_all(&frame(Kind::Opened, &[])).await.is_err() {
        return;
    }
    if let Err(error) = port::relay(&mut reader, writer, connection).await {
        tracing::debug!(
            error = crate::service::chain(&error),
            "a connection to a port ended"
        );
    }
    drop(permit);
}

async fn refuse(mut writer: Sink, error: &StreamError) {
    let text = crate::service::chain(error);
    // A caller that is gone needs no reason.
    let _ = writer.write_all(&frame(Kind::Error, text.as_bytes())).await;
    let _ = writer.shutdown().await;
}

/// Reads the first frame.
async fn opened(reader: &mut BufReader<Reader>) -> Result<StreamOpen, StreamError> {
    let mut payload = Vec::new();
    let kind = tokio::time::timeout(OPEN_TIMEOUT, read(reader, &mut payload))
        .await
        .map_err(|_elapsed| StreamError::OpenTimeout)??;
    if kind != Some(Kind::Open) {
        return Err(StreamError::NotOpen);
    }
    Ok(StreamOpen::parse_from_bytes(&payload)?)
}

/// The process whose streams are asked for.
fn process(open: &StreamOpen, containers: &Containers) -> Result<Arc<Process>, StreamError> {
    let process = containers.process(&open.container_id, &open.exec_id)?;
    if open.stdin && process.input.is_none() {
        return Err(StreamError::NoInput);
    }
    Ok(process)
}

/// Reads what the caller sends until it closes.
async fn frames(
    reader: &mut BufReader<Reader>,
    process: &Process,
    stdin: bool,
) -> Result<(), StreamError> {
    let input = process.input.as_ref().filter(|_| stdin);
    let mut payload = Vec::new();
    while let Some(kind) = read(reader, &mut payload).await? {
        match (kind, input) {
            (Kind::Stdin, Some(input)) => input.write(&payload).await,
            (Kind::StdinClosed, Some(input)) => input.sender_done().await,
            (Kind::Resize, _) => resize(process, &payload),
            (Kind::Stdin | Kind::StdinClosed, None) => return Err(StreamError::NoInput),
            (
                Kind::Open | Kind::Opened | Kind::Error | Kind::Stdout | Kind::Stderr | Kind::End,
                _,
            ) => return Err(StreamError::Header(HeaderError::Kind(kind as u8))),
        }
    }
    Ok(())
}

/// A process without a terminal, or one that ended, has no size to change.
fn resize(process: &Process, payload: &[u8]) {
    if let (Some(terminal), &[c1, c0, r1, r0]) = (&process.terminal, payload) {
        let _ = terminal.resize(u16::from_be_bytes([c1, c0]), u16::from_be_bytes([r1, r0]));
    }
}

/// Reads one frame; none when the caller has closed.
pub(super) async fn read(
    reader: &mut BufReader<Reader>,
    payload: &mut Vec<u8>,
) -> Result<Option<Kind>, StreamError> {
    let mut header = [0; HEADER_LEN];
    match reader.read_exact(&mut header).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    };
    let header = Header::decode(header)?;
    payload.resize(header.len, 0);
    reader.read_exact(payload).await?;
    Ok(Some(header.kind))
}

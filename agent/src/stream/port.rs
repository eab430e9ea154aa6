//! A connection to a port of the sandbox, for port-forward.
//!
//! ```text
//!   caller ── Stdin* StdinClosed ──> TCP connection, its half closed
//!   caller <── Stdout* End ───────── TCP connection, read to its end
//! ```
//!
//! The directions end alone. When the caller closes, so does the TCP connection.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use isopod_proto::stream::{HEADER_LEN, Header, HeaderError, Kind, MAX_PAYLOAD};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::server::{Reader, StreamError, read};
use super::{Sink, frame};

/// How long each address may take to answer. On loopback, only a full backlog takes any time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Nothing answers on the port.
#[derive(Debug, thiserror::Error)]
#[error("{v4}; {v6}")]
pub(super) struct PortError {
    v4: AddressError,
    v6: AddressError,
}

/// Nothing answers on one of its addresses.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {why}")]
struct AddressError {
    address: SocketAddr,
    why: io::Error,
}

/// Connects to the port: where most servers listen first.
///
/// # Errors
///
/// [`PortError`] when neither address answers.
pub(super) async fn connect(port: u16) -> Result<TcpStream, PortError> {
    let v4 = match connect_to((Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    let v6 = connect_to((Ipv6Addr::LOCALHOST, port).into()).await;
    v6.map_err(|v6| PortError { v4, v6 })
}

async fn connect_to(address: SocketAddr) -> Result<TcpStream, AddressError> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let connected = connecting.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()));
    connected
        // What comes in small pieces goes on in small pieces.
        .and_then(|connection| connection.set_nodelay(true).map(|()| connection))
        .map_err(|why| AddressError { address, why })
}

/// Moves bytes until the caller closes.
///
/// # Errors
///
/// When the caller breaks the protocol, or its connection breaks.
pub(super) async fn relay(
    reader: &mut BufReader<Reader>,
    mut writer: Sink,
    connection: TcpStream,
) -> Result<(), StreamError> {
    let (from_port, to_port) = connection.into_split();
    let output = async {
        // A caller that is gone is noticed by the other direction, too.
        let _gone = take_output(from_port, &mut writer).await;
        std::future::pending().await
    };
    tokio::select! {
        result = give_input(reader, to_port) => result,
        () = output => unreachable!("it waits for ever"),
    }
}

/// Reads what the caller sends until it closes.
async fn give_input(
    reader: &mut BufReader<Reader>,
    to_port: OwnedWriteHalf,
) -> Result<(), StreamError> {
    let mut to_port = Some(to_port);
    let mut payload = Vec::new();
    while let Some(kind) = read(reader, &mut payload).await? {
        match (kind, &mut to_port) {
            (Kind::Stdin, Some(open)) => {
                if open.write_all(&payload).await.is_err() {
                    // The server takes no more. What it says is worth reading all the same.
                    to_port = None;
                }
            }
            // Dropped, its direction is shut down.
            (Kind::StdinClosed, _) => to_port = None,
            (Kind::Stdin, None) => {}
            (kind, _) => return Err(StreamError::Header(HeaderError::Kind(kind as u8))),
        }
    }
    Ok(())
}

/// Sends what the server says, and how that ended.
async fn take_output(mut from_port: OwnedReadHalf, writer: &mut Sink) -> io::Result<()> {
    let mut buffer = vec![0; HEADER_LEN + MAX_PAYLOAD];
    loop {
        let len = match from_port.read(&mut buffer[HEADER_LEN..]).await {
            Ok(0) => return writer.write_all(&frame(Kind::End, &[])).await,
            Ok(len) => len,
            Err(error) => {
                let text = error.to_string();
                return writer.write_all(&frame(Kind::Error, text.as_bytes())).await;
            }
        };
        let kind = Kind::Stdout;
        buffer[..HEADER_LEN].copy_from_slice(&Header { kind, len }.encode());
        writer.write_all(&buffer[..HEADER_LEN + len]).await?;
    }
}

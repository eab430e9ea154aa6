//! The server as its clients see it, over loopback, with a fake agent behind.

mod remote_command;
mod web_socket;

use std::time::Duration;

use isopod_proto::agent::StreamOpen;
use isopod_proto::stream::{HEADER_LEN, Header, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::*;
use crate::config::StreamingConfig;

const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};

/// What takes all that these streams bring.
fn process(stream: ProcessStream, streams: Streams) -> Process {
    Process {
        stream,
        takes: Takes {
            stdin: streams.stdin,
            resize: streams.tty,
        },
        exit: None,
    }
}

/// Far longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn server() -> Server {
    Server::start(&StreamingConfig::default()).unwrap()
}

/// The agent's end of a process's stream connection.
struct Agent(UnixStream);

impl Agent {
    /// A process's stream and the agent behind it.
    async fn with_stream() -> (ProcessStream, Self) {
        let (near, far) = UnixStream::pair().unwrap();
        let mut agent = Self(far);
        let answer = async {
            assert_eq!(agent.receive().await.unwrap().0, Kind::Open);
            agent.send(Kind::Opened, b"").await;
        };
        let request = StreamOpen::new();
        let (stream, ()) = tokio::join!(ProcessStream::open(near, &request), answer);
        (stream.unwrap(), agent)
    }

    async fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.try_send(kind, payload).await.unwrap();
    }

    async fn try_send(&mut self, kind: Kind, payload: &[u8]) -> std::io::Result<()> {
        let header = Header {
            kind,
            len: payload.len(),
        };
        self.0.write_all(&header.encode()).await?;
        self.0.write_all(payload).await
    }

    /// The next frame; `None` when the daemon has closed the stream.
    async fn receive(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut header = [0; HEADER_LEN];
        timeout(PATIENCE, self.0.read_exact(&mut header))
            .await
            .unwrap()
            .ok()?;
        let header = Header::decode(header).unwrap();
        let mut payload = vec![0; header.len];
        self.0.read_exact(&mut payload).await.unwrap();
        Some((header.kind, payload))
    }
}

#[tokio::test]
async fn requests_that_are_no_upgrade_are_answered_and_hung_up_on() {
    let server = server();
    let address = server
        .attach_url(ALL, async || Err("not reached".into()))
        .unwrap();
    let address = address.split('/').nth(2).unwrap().to_owned();
    for (request, answer) in [
        ("GET /exec/1 HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 426 "),
        (
            "POST /exec/1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n",
            "HTTP/1.1 400 ",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 "),
        ("GARBAGE\r\n\r\n", "HTTP/1.1 400 "),
    ] {
        let mut connection = TcpStream::connect(&address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        timeout(PATIENCE, connection.read_to_string(&mut text))
            .await
            .unwrap()
            .unwrap();
        assert!(text.starts_with(answer), "{request:?}: {text:?}");
    }
}

#[tokio::test]
async fn request_that_is_too_long_is_refused() {
    let server = server();
    let address = server
        .attach_url(ALL, async || Err("not reached".into()))
        .unwrap();
    let address = address.split('/').nth(2).unwrap().to_owned();
    let mut connection = TcpStream::connect(&address).await.unwrap();
    let request = format!("GET /{} HTTP/1.1\r\n", "a".repeat(1024 * 1024));
    // The server may hang up before everything was written.
    let _broken = connection.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _reset = timeout(PATIENCE, connection.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
        "{answer:?}"
    );
}

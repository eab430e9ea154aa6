//! A process's streams as streams of a SPDY connection.

use std::collections::HashMap;

use bytes::BytesMut;
use futures_util::StreamExt;
use http::StatusCode;
use isopod_proto::stream::MAX_PAYLOAD;
use isopod_spdy::Headers;
use isopod_spdy::decode::FrameDecoder;
use isopod_spdy::frame::Frame;
use isopod_spdy::testing::{self, ClientEncoder};
use serde_json::Value;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::FramedRead;

use super::*;

const V4: &str = "v4.channel.k8s.io";

/// A client with its streams, by kind.
struct Client {
    encoder: ClientEncoder,
    frames: FramedRead<OwnedReadHalf, FrameDecoder>,
    writer: OwnedWriteHalf,
    ids: HashMap<&'static str, u32>,
    received: HashMap<u32, Vec<u8>>,
    ended: Vec<u32>,
    gone_away: bool,
}

/// Sends the request; the connection, and the answer's head.
pub(super) async fn upgrade(url: &str, headers: &str) -> (TcpStream, String) {
    let (address, path) = url["http://".len()..].split_once('/').unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request =
        format!("POST /{path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, connection.read_u8()).await.unwrap();
        head.push(byte.unwrap());
    }
    (connection, String::from_utf8(head).unwrap())
}

pub(super) fn spdy_headers(protocols: &str) -> String {
    format!(
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocols}\r\n"
    )
}

impl Client {
    async fn connect(url: &str, protocol: &str) -> Self {
        let (connection, head) = upgrade(url, &spdy_headers(protocol)).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(
            head.to_lowercase()
                .contains(&format!("\r\nx-stream-protocol-version: {protocol}\r\n")),
            "{head}"
        );
        let (reader, writer) = connection.into_split();
        Self {
            encoder: ClientEncoder::new(),
            frames: FramedRead::new(reader, FrameDecoder::new()),
            writer,
            ids: HashMap::new(),
            received: HashMap::new(),
            ended: Vec::new(),
            gone_away: false,
        }
    }

    /// Opens streams as Kubernetes' clients do: one after the other was accepted.
    async fn open(&mut self, kinds: &[&'static str]) {
        for kind in kinds {
            let id = u32::try_from(2 * self.ids.len() + 1).unwrap();
            let mut bytes = BytesMut::new();
            let headers = Headers::new(&[("streamtype", kind)]);
            self.encoder.open(id, &headers, &mut bytes);
            self.writer.write_all(&bytes).await.unwrap();
            self.ids.insert(kind, id);
            let frame = self.frame().await.unwrap();
            let Frame::SynReply { stream, .. } = frame else {
                panic!("{kind}: {frame:?}")
            };
            assert_eq!(stream, id);
        }
    }

    async fn send(&mut self, kind: &str, bytes: &[u8], fin: bool) {
        let mut frame = BytesMut::new();
        testing::data(self.ids[kind], bytes, fin, &mut frame);
        self.writer.write_all(&frame).await.unwrap();
    }

    async fn frame(&mut self) -> Option<Frame> {
        let frame = timeout(PATIENCE, self.frames.next()).await.unwrap();
        frame.map(Result::unwrap)
    }

    /// Takes in one frame; false when the server has closed.
    async fn step(&mut self) -> bool {
        match self.frame().await {
            Some(Frame::Data { stream, bytes, fin }) => {
                let received = self.received.entry(stream).or_default();
                received.extend_from_slice(&bytes);
                if fin {
                    self.ended.push(stream);
                }
            }
            Some(Frame::GoAway { .. }) => self.gone_away = true,
            Some(_) => {}
            None => return false,
        }
        true
    }

    fn received(&self, kind: &str) -> &[u8] {
        self.received
            .get(&self.ids[kind])
            .map_or(&[], Vec::as_slice)
    }

    async fn receive(&mut self, kind: &str, bytes: &[u8]) {
        while self.received(kind) != bytes {
            assert!(self.step().await, "closed: {:?}", self.received);
        }
    }

    /// Everything up to the server's goodbye; what came on the error stream.
    async fn receive_end(&mut self) -> String {
        while self.step().await {}
        assert!(self.gone_away);
        for kind in ["error", "stdout", "stderr"] {
            if let Some(id) = self.ids.get(kind) {
                assert!(self.ended.contains(id), "{kind}");
            }
        }
        String::from_utf8(self.received("error").to_vec()).unwrap()
    }

    async fn receive_status(&mut self) -> Value {
        serde_json::from_str(&self.receive_end().await).unwrap()
    }
}

/// A client attached to a process, and the agent behind it.
async fn attached(server: &Server, streams: Streams) -> (Client, Agent) {
    let (stream, agent) = Agent::with_stream().await;
    let open = async move || Ok(process(stream, streams));
    let url = server.attach_url(streams, open).unwrap();
    let mut client = Client::connect(&url, V4).await;
    client.open(&kinds(streams)).await;
    (client, agent)
}

fn kinds(streams: Streams) -> Vec<&'static str> {
    [
        ("error", true),
        ("stdin", streams.stdin),
        ("stdout", streams.stdout),
        ("stderr", streams.stderr),
        ("resize", streams.tty),
    ]
    .into_iter()
    .filter_map(|(kind, asked)| asked.then_some(kind))
    .collect()
}

const TTY: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: false,
    tty: true,
};

/// The URL of a process that ends with this exit code.
async fn exec_url(server: &Server, streams: Streams, code: i32) -> (String, Agent) {
    let (stream, agent) = Agent::with_stream().await;
    let open = async move || {
        let exit: BoxFuture<'static, _> = Box::pin(async move { Ok(code) });
        Ok(Process {
            exit: Some(exit),
            ..process(stream, streams)
        })
    };
    (server.exec_url(streams, open).unwrap(), agent)
}

#[tokio::test]
async fn output_and_input_go_through_and_the_end_is_told() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL).await;
    agent.send(Kind::Stdout, b"out").await;
    agent.send(Kind::Stderr, b"err").await;
    client.receive("stdout", b"out").await;
    client.receive("stderr", b"err").await;
    client.send("stdin", b"hello", false).await;
    client.send("stdin", b"", true).await;
    assert_eq!(
        agent.receive().await,
        Some((Kind::Stdin, b"hello".to_vec()))
    );
    assert_eq!(agent.receive().await, Some((Kind::StdinClosed, vec![])));
    agent.send(Kind::Stdout, b"!").await;
    agent.send(Kind::End, b"").await;
    assert_eq!(client.receive_status().await["status"], "Success");
    assert_eq!(client.received("stdout"), b"out!");
    assert!(agent.receive().await.is_none());
}

#[tokio::test]
async fn version_4_tells_the_exit_code_as_a_status_and_older_ones_as_text() {
    let server = server();
    for version in [
        "channel.k8s.io",
        "v2.channel.k8s.io",
        "v3.channel.k8s.io",
        V4,
    ] {
        for code in [0, 7] {
            let (url, mut agent) = exec_url(&server, ALL, code).await;
            let mut client = Client::connect(&url, version).await;
            client.open(&kinds(ALL)).await;
            agent.send(Kind::Stdout, b"bye").await;
            agent.send(Kind::End, b"").await;
            let error = client.receive_end().await;
            assert_eq!(client.received("stdout"), b"bye");
            match (version, code) {
                (V4, 0) => assert!(error.contains("Success"), "{error}"),
                (V4, _) => {
                    let status: Value = serde_json::from_str(&error).unwrap();
                    let cause = &status["details"]["causes"][0];
                    assert_eq!(status["reason"], "NonZeroExitCode");
                    assert_eq!(cause["message"], "7");
                }
                (_, 0) => assert_eq!(error, ""),
                _ => assert!(error.ends_with("exit status 7"), "{error}"),
            }
        }
    }
}

#[tokio::test]
async fn failure_to_start_is_told_on_the_error_stream() {
    let server = server();
    let open = async || Err("executable file not found: nope".into());
    let url = server.exec_url(ALL, open).unwrap();
    let mut client = Client::connect(&url, V4).await;
    client.open(&kinds(ALL)).await;
    let status = client.receive_status().await;
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("not found: nope"), "{message}");
}

#[tokio::test]
async fn terminal_is_resized_and_older_versions_have_no_stream_for_it() {
    let server = server();
    let (mut client, mut agent) = attached(&server, TTY).await;
    let sizes = b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":40}\n";
    client.send("resize", sizes, false).await;
    assert_eq!(
        agent.receive().await,
        Some((Kind::Resize, vec![0, 100, 0, 40]))
    );
    client.send("resize", b"nonsense", false).await;
    client.send("stdin", b"ls\n", false).await;
    assert_eq!(agent.receive().await, Some((Kind::Stdin, b"ls\n".to_vec())));

    let (url, mut agent) = exec_url(&server, TTY, 0).await;
    let mut client = Client::connect(&url, "v2.channel.k8s.io").await;
    client.open(&["error", "stdin", "stdout"]).await;
    agent.send(Kind::End, b"").await;
    assert_eq!(client.receive_end().await, "");
}

#[tokio::test]
async fn streams_of_other_kinds_and_second_ones_are_refused() {
    let server = server();
    let (url, mut agent) = exec_url(&server, ALL, 0).await;
    let mut client = Client::connect(&url, V4).await;
    client.open(&["error", "stdout"]).await;
    for (id, kind) in [(5, "stdout"), (7, "data"), (9, "Stdin")] {
        let mut bytes = BytesMut::new();
        let headers = Headers::new(&[("streamtype", kind)]);
        client.encoder.open(id, &headers, &mut bytes);
        client.writer.write_all(&bytes).await.unwrap();
        let (stream, reason) = (id, 3);
        assert_eq!(client.frame().await, Some(Frame::Reset { stream, reason }));
    }
    client.ids.extend([("5", 5), ("7", 7), ("9", 9)]);
    client.open(&["stdin", "stderr"]).await;
    agent.send(Kind::End, b"").await;
    assert_eq!(client.receive_status().await["status"], "Success");
}

#[tokio::test]
async fn client_that_leaves_ends_the_process() {
    let server = server();
    for streams in [&["error"][..], &["error", "stdin", "stdout", "stderr"]] {
        let (url, mut agent) = exec_url(&server, ALL, 0).await;
        let mut client = Client::connect(&url, V4).await;
        client.open(streams).await;
        drop(client);
        assert!(agent.receive().await.is_none());
    }
}

#[tokio::test]
async fn client_that_sends_nonsense_ends_the_process_and_nothing_else() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL).await;
    let (mut other, mut other_agent) = attached(&server, ALL).await;
    client
        .writer
        .write_all(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff])
        .await
        .unwrap();
    assert!(agent.receive().await.is_none());
    other_agent.send(Kind::Stdout, b"alive").await;
    other.receive("stdout", b"alive").await;
}

#[tokio::test]
async fn client_that_does_not_read_stops_the_process_and_loses_nothing() {
    const PIECES: usize = 1024;
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL).await;
    let (sent, mut counter) = tokio::sync::watch::channel(0);
    let writer = tokio::spawn(async move {
        let mut piece = vec![0; MAX_PAYLOAD];
        for number in 0..PIECES {
            piece.fill(u8::try_from(number % 251).unwrap());
            agent.send(Kind::Stdout, &piece).await;
            sent.send_replace(number);
        }
        agent.send(Kind::End, b"").await;
    });
    // Until the buffers between process and client are full, and nothing moves any more.
    let pause = Duration::from_millis(300);
    while timeout(pause, counter.changed()).await.is_ok() {}
    assert!(*counter.borrow() < PIECES / 2, "64 MiB went nowhere");
    assert_eq!(client.receive_status().await["status"], "Success");
    let received = client.received("stdout");
    assert_eq!(received.len(), PIECES * MAX_PAYLOAD);
    for (number, piece) in received.chunks(MAX_PAYLOAD).enumerate() {
        assert!(piece.iter().all(|byte| usize::from(*byte) == number % 251));
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn process_that_does_not_read_stops_the_client_but_not_its_output() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL).await;
    let piece = vec![1; 60 * 1024];
    let mut frame = BytesMut::new();
    testing::data(client.ids["stdin"], &piece, false, &mut frame);
    let writer = &mut client.writer;
    let mut sent = 0;
    let pause = Duration::from_millis(300);
    while let Ok(written) = timeout(pause, writer.write(&frame[sent % frame.len()..])).await {
        sent += written.unwrap();
        assert!(sent < 60 << 20, "60 MiB went nowhere");
    }
    agent.send(Kind::Stdout, b"alive").await;
    client.receive("stdout", b"alive").await;
    let mut total = 0;
    let whole = sent / frame.len() * piece.len();
    while total < whole {
        let (kind, bytes) = agent.receive().await.unwrap();
        assert_eq!(kind, Kind::Stdin);
        total += bytes.len();
    }
}

#[tokio::test]
async fn idle_client_and_stopping_daemon_are_told() {
    let config = StreamingConfig {
        idle_timeout_ms: 300,
        ..StreamingConfig::default()
    };
    let idle = Server::start(&config).unwrap();
    let (mut client, mut agent) = attached(&idle, ALL).await;
    let status = client.receive_status().await;
    assert!(status["message"].as_str().unwrap().contains("idle"));
    assert!(agent.receive().await.is_none());

    let server = server();
    let (mut client, mut agent) = attached(&server, ALL).await;
    let (status, ()) = tokio::join!(
        async {
            let status = client.receive_status().await;
            drop(client);
            status
        },
        server.shut_down()
    );
    assert!(status["message"].as_str().unwrap().contains("stops"));
    assert!(agent.receive().await.is_none());
}

#[tokio::test]
async fn protocol_that_is_refused_leaves_the_token() {
    let server = server();
    let (url, _agent) = exec_url(&server, ALL, 0).await;
    for (headers, status) in [
        (spdy_headers("portforward.k8s.io"), StatusCode::FORBIDDEN),
        (spdy_headers(""), StatusCode::BAD_REQUEST),
        ("Upgrade: SPDY/3.1\r\n".into(), StatusCode::BAD_REQUEST),
        (
            "Connection: Upgrade\r\nUpgrade: h2c\r\n".into(),
            StatusCode::UPGRADE_REQUIRED,
        ),
    ] {
        let (_connection, head) = upgrade(&url, &headers).await;
        assert!(head.contains(status.as_str()), "{headers}: {head}");
    }
    Client::connect(&url, V4).await;
    let (_connection, head) = upgrade(&url, &spdy_headers(V4)).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
}

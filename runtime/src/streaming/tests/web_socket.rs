//! A process's streams as channels of a WebSocket.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode};
use isopod_proto::stream::MAX_PAYLOAD;
use serde_json::Value;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::channel::{ClientMessage, MESSAGE_MAX, TerminalSize, Version};
use super::*;

type Client = WebSocketStream<TcpStream>;

/// A client attached to a process, and the agent behind it.
async fn attached(server: &Server, streams: Streams, version: Version) -> (Client, Agent) {
    let (stream, agent) = Agent::with_stream().await;
    let open = async move || Ok(process(stream, streams));
    let url = server.attach_url(streams, open).unwrap();
    let mut client = connect(&url, version.name()).await.unwrap();
    let first = if streams.stdout {
        channel::STDOUT
    } else {
        channel::STDERR
    };
    assert_eq!(
        receive(&mut client).await,
        Message::Binary(vec![first].into())
    );
    (client, agent)
}

async fn connect(url: &str, protocols: &str) -> Result<Client, SocketError> {
    let mut request = url
        .replace("http://", "ws://")
        .into_client_request()
        .unwrap();
    let protocols = HeaderValue::from_str(protocols).unwrap();
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocols);
    let address = request.uri().authority().unwrap().to_string();
    let connection = TcpStream::connect(address).await.unwrap();
    Ok(client_async(request, connection).await?.0)
}

async fn refused(url: &str, protocols: &str) -> StatusCode {
    match connect(url, protocols).await {
        Err(SocketError::Http(response)) => response.status(),
        other => panic!("{other:?}"),
    }
}

async fn receive(client: &mut Client) -> Message {
    timeout(PATIENCE, client.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

async fn receive_on(client: &mut Client, channel: u8) -> Vec<u8> {
    let message = receive(client).await.into_data();
    assert_eq!(message[0], channel, "{message:?}");
    message[1..].to_vec()
}

async fn receive_status(client: &mut Client) -> Value {
    let status = receive_on(client, channel::STATUS).await;
    assert_eq!(receive_close(client).await.0, CloseCode::Normal);
    serde_json::from_slice(&status).unwrap()
}

/// The close frame, past pings.
async fn receive_close(client: &mut Client) -> (CloseCode, String) {
    loop {
        match receive(client).await {
            Message::Close(Some(frame)) => return (frame.code, frame.reason.to_string()),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn send(client: &mut Client, message: ClientMessage) {
    client
        .send(Message::Binary(message.encode()))
        .await
        .unwrap();
}

#[tokio::test]
async fn output_reaches_the_client_on_its_channels_and_ends_with_a_status() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    agent.send(Kind::Stdout, b"out").await;
    agent.send(Kind::Stderr, b"err").await;
    agent.send(Kind::End, b"").await;
    assert_eq!(receive_on(&mut client, channel::STDOUT).await, b"out");
    assert_eq!(receive_on(&mut client, channel::STDERR).await, b"err");
    assert_eq!(receive_status(&mut client).await["status"], "Success");
    assert!(agent.receive().await.is_none());
}

#[tokio::test]
async fn output_that_was_not_asked_for_is_not_sent() {
    let server = server();
    let streams = Streams {
        stdout: false,
        ..ALL
    };
    let (mut client, mut agent) = attached(&server, streams, Version::V4).await;
    agent.send(Kind::Stdout, b"out").await;
    agent.send(Kind::Stderr, b"err").await;
    agent.send(Kind::End, b"").await;
    assert_eq!(receive_on(&mut client, channel::STDERR).await, b"err");
    assert_eq!(receive_status(&mut client).await["status"], "Success");
}

#[tokio::test]
async fn exec_exit_code_is_in_the_status() {
    let server = server();
    let (stream, mut agent) = Agent::with_stream().await;
    let open = async move || {
        let exit: BoxFuture<'static, _> = Box::pin(async { Ok(42) });
        Ok(Process {
            exit: Some(exit),
            ..process(stream, ALL)
        })
    };
    let url = server.exec_url(ALL, open).unwrap();
    let mut client = connect(&url, Version::V4.name()).await.unwrap();
    receive(&mut client).await;
    agent.send(Kind::End, b"").await;
    let status = receive_status(&mut client).await;
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "42");
}

#[tokio::test]
async fn process_that_cannot_be_opened_is_told_in_the_status() {
    let server = server();
    let open = async || Err("executable file not found: nope".into());
    let url = server.exec_url(ALL, open).unwrap();
    let mut client = connect(&url, Version::V5.name()).await.unwrap();
    let status = receive_status(&mut client).await;
    assert_eq!(status["status"], "Failure");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("executable file not found: nope"),
        "{message}"
    );
}

#[tokio::test]
async fn output_that_breaks_off_is_a_failure() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    agent.send(Kind::Stdout, b"half").await;
    drop(agent);
    assert_eq!(receive_on(&mut client, channel::STDOUT).await, b"half");
    let status = receive_status(&mut client).await;
    assert_eq!(status["reason"], "InternalError");
}

#[tokio::test]
async fn input_and_its_end_reach_the_process() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    send(
        &mut client,
        ClientMessage::Stdin(Bytes::from_static(b"hello")),
    )
    .await;
    send(&mut client, ClientMessage::StdinClosed).await;
    assert_eq!(
        agent.receive().await,
        Some((Kind::Stdin, b"hello".to_vec()))
    );
    assert_eq!(agent.receive().await, Some((Kind::StdinClosed, vec![])));
    agent.send(Kind::Stdout, b"still here").await;
    assert_eq!(
        receive_on(&mut client, channel::STDOUT).await,
        b"still here"
    );
}

#[tokio::test]
async fn input_that_was_not_asked_for_is_dropped() {
    let server = server();
    let streams = Streams {
        stdin: false,
        tty: true,
        ..ALL
    };
    let (mut client, mut agent) = attached(&server, streams, Version::V5).await;
    send(
        &mut client,
        ClientMessage::Stdin(Bytes::from_static(b"hello")),
    )
    .await;
    send(
        &mut client,
        ClientMessage::Resize(TerminalSize {
            columns: 1,
            rows: 2,
        }),
    )
    .await;
    assert_eq!(
        agent.receive().await,
        Some((Kind::Resize, vec![0, 1, 0, 2]))
    );
}

#[tokio::test]
async fn resize_without_a_terminal_is_dropped() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    send(
        &mut client,
        ClientMessage::Resize(TerminalSize {
            columns: 1,
            rows: 2,
        }),
    )
    .await;
    send(&mut client, ClientMessage::Nothing).await;
    send(&mut client, ClientMessage::Stdin(Bytes::from_static(b"x"))).await;
    assert_eq!(agent.receive().await, Some((Kind::Stdin, b"x".to_vec())));
}

#[tokio::test]
async fn client_that_leaves_closes_the_process_stream_and_drops_the_exec() {
    let server = server();
    let (stream, mut agent) = Agent::with_stream().await;
    let (alive, gone) = tokio::sync::oneshot::channel::<()>();
    let open = async move || {
        let exit: BoxFuture<'static, _> = Box::pin(async move {
            let _alive = alive;
            std::future::pending().await
        });
        Ok(Process {
            exit: Some(exit),
            ..process(stream, ALL)
        })
    };
    let url = server.exec_url(ALL, open).unwrap();
    let client = connect(&url, Version::V5.name()).await.unwrap();
    drop(client);
    assert!(agent.receive().await.is_none());
    assert!(timeout(PATIENCE, gone).await.unwrap().is_err());
}

#[tokio::test]
async fn token_works_once_and_only_on_its_route() {
    let server = server();
    let (stream, _agent) = Agent::with_stream().await;
    let url = server
        .attach_url(ALL, async move || Ok(process(stream, ALL)))
        .unwrap();
    let protocol = Version::V5.name();
    let other_route = url.replace("/attach/", "/exec/");
    assert_eq!(refused(&other_route, protocol).await, StatusCode::NOT_FOUND);
    let _client = connect(&url, protocol).await.unwrap();
    assert_eq!(refused(&url, protocol).await, StatusCode::NOT_FOUND);
    let guessed = format!("{}{}", &url[..url.len() - 64], "0".repeat(64));
    assert_eq!(refused(&guessed, protocol).await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn protocol_that_is_refused_leaves_the_token() {
    let server = server();
    let (stream, _agent) = Agent::with_stream().await;
    let url = server
        .attach_url(ALL, async move || Ok(process(stream, ALL)))
        .unwrap();
    let bad = StatusCode::BAD_REQUEST;
    assert_eq!(refused(&url, "v4.base64.channel.k8s.io").await, bad);
    assert!(
        connect(&url, "v4.channel.k8s.io, v4.base64.channel.k8s.io")
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn message_over_the_limit_ends_the_session() {
    let server = server();
    let (client, mut agent) = attached(&server, ALL, Version::V5).await;
    let message = Message::Binary(vec![0; MESSAGE_MAX + 1].into());
    let (mut sink, mut source) = client.split();
    // The server may hang up before everything was written.
    let sending = tokio::spawn(async move { sink.send(message).await });
    let close = timeout(PATIENCE, source.next()).await.unwrap();
    let close = close.unwrap().unwrap();
    let Message::Close(Some(frame)) = close else {
        panic!("{close:?}")
    };
    assert_eq!(frame.code, CloseCode::Size);
    drop(source);
    sending.abort();
    assert!(agent.receive().await.is_none());
}

#[tokio::test]
async fn fragments_are_joined_and_their_sum_is_limited() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    let fragment = |bytes: &'static [u8], opcode, last| {
        Message::Frame(Frame::message(bytes, OpCode::Data(opcode), last))
    };
    client
        .send(fragment(b"\0hel", Data::Binary, false))
        .await
        .unwrap();
    client.send(Message::Ping(Bytes::new())).await.unwrap();
    client
        .send(fragment(b"lo", Data::Continue, true))
        .await
        .unwrap();
    assert_eq!(
        agent.receive().await,
        Some((Kind::Stdin, b"hello".to_vec()))
    );
    assert_eq!(receive(&mut client).await, Message::Pong(Bytes::new()));

    static CHUNK: [u8; 64 * 1024] = [0; 64 * 1024];
    client
        .send(fragment(&CHUNK, Data::Binary, false))
        .await
        .unwrap();
    for _ in 0..MESSAGE_MAX / CHUNK.len() {
        client
            .send(fragment(&CHUNK, Data::Continue, false))
            .await
            .unwrap();
    }
    assert_eq!(receive_close(&mut client).await.0, CloseCode::Size);
    assert!(agent.receive().await.is_none());
}

#[tokio::test]
async fn continuation_of_nothing_ends_the_session() {
    let server = server();
    let (mut client, _agent) = attached(&server, ALL, Version::V5).await;
    let frame = Frame::message(&b"\0x"[..], OpCode::Data(Data::Continue), true);
    client.send(Message::Frame(frame)).await.unwrap();
    assert_eq!(receive_close(&mut client).await.0, CloseCode::Protocol);
}

#[tokio::test]
async fn unknown_channel_ends_the_session_with_its_number() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    client
        .send(Message::Binary(vec![7, 1, 2].into()))
        .await
        .unwrap();
    let (code, reason) = receive_close(&mut client).await;
    assert_eq!(code, CloseCode::Protocol);
    assert!(reason.contains("channel 7"), "{reason}");
    assert!(agent.receive().await.is_none());
}

#[tokio::test]
async fn text_is_taken_as_bytes_and_must_be_utf8() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    client.send(Message::Text("\0hé".into())).await.unwrap();
    assert_eq!(
        agent.receive().await,
        Some((Kind::Stdin, "hé".as_bytes().to_vec()))
    );
    let frame = Frame::message(&b"\0\xff\xff"[..], OpCode::Data(Data::Text), true);
    client.send(Message::Frame(frame)).await.unwrap();
    assert_eq!(receive_close(&mut client).await.0, CloseCode::Invalid);
}

#[tokio::test]
async fn client_that_does_not_read_stops_the_process_and_loses_nothing() {
    const PIECES: usize = 1024;
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = written.clone();
    let writer = tokio::spawn(async move {
        let mut piece = vec![0; MAX_PAYLOAD];
        for number in 0..PIECES {
            piece.fill(u8::try_from(number % 251).unwrap());
            agent.send(Kind::Stdout, &piece).await;
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        agent.send(Kind::End, b"").await;
    });
    // Until the buffers between process and client are full, and nothing moves any more.
    let mut before = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = written.load(std::sync::atomic::Ordering::SeqCst);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < PIECES, "64 MiB went nowhere");
    for number in 0..PIECES {
        let piece = receive_on(&mut client, channel::STDOUT).await;
        assert_eq!(piece.len(), MAX_PAYLOAD);
        assert!(piece.iter().all(|byte| usize::from(*byte) == number % 251));
    }
    assert_eq!(receive_status(&mut client).await["status"], "Success");
    writer.await.unwrap();
}

#[tokio::test]
async fn process_that_does_not_read_stops_the_client_but_not_its_output() {
    let server = server();
    let (client, mut agent) = attached(&server, ALL, Version::V5).await;
    let (mut sink, mut source) = client.split();
    let message = ClientMessage::Stdin(vec![1; 60 * 1024].into()).encode();
    let sender = tokio::spawn(async move {
        for _ in 0..1024 {
            sink.send(Message::Binary(message.clone())).await.unwrap();
        }
        sink.send(Message::Binary(ClientMessage::StdinClosed.encode()))
            .await
            .unwrap();
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!sender.is_finished(), "60 MiB went nowhere");
    agent.send(Kind::Stdout, b"alive").await;
    let output = timeout(PATIENCE, source.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(output.into_data(), &b"\x01alive"[..]);
    let mut total = 0;
    loop {
        match agent.receive().await.unwrap() {
            (Kind::Stdin, bytes) => total += bytes.len(),
            (Kind::StdinClosed, _) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(total, 1024 * 60 * 1024);
    sender.await.unwrap();
}

#[tokio::test]
async fn stream_on_which_nothing_moves_is_closed() {
    let config = StreamingConfig {
        idle_timeout_ms: 300,
        ..StreamingConfig::default()
    };
    let server = Server::start(&config).unwrap();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        agent.send(Kind::Stdout, b".").await;
        receive_on(&mut client, channel::STDOUT).await;
    }
    assert_eq!(receive_close(&mut client).await.0, CloseCode::Away);
    assert!(agent.receive().await.is_none());
}

#[tokio::test]
async fn shutting_down_tells_the_clients_and_stops_listening() {
    let server = server();
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    let url = server
        .attach_url(ALL, async || Err("not reached".into()))
        .unwrap();
    let (close, ()) = tokio::join!(
        async {
            let close = receive_close(&mut client).await;
            drop(client);
            close
        },
        server.shut_down()
    );
    assert_eq!(close.0, CloseCode::Away);
    assert!(agent.receive().await.is_none());
    let address = url.split('/').nth(2).unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn ten_thousand_connections_that_say_nothing_do_not_stop_the_next_client() {
    let server = server();
    let url = server
        .attach_url(ALL, async || Err("not reached".into()))
        .unwrap();
    let address = url.split('/').nth(2).unwrap();
    for _ in 0..25 {
        let mut held = Vec::new();
        for _ in 0..400 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
    }
    let (mut client, mut agent) = attached(&server, ALL, Version::V5).await;
    agent.send(Kind::End, b"").await;
    assert_eq!(receive_status(&mut client).await["status"], "Success");
}

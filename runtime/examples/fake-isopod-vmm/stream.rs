//! Connections to the vsock: the agent's service, processes' streams, forwarded ports.

use std::sync::Arc;

use isopod_proto::agent::{StreamOpen, StreamRole};
use isopod_proto::stream::{HEADER_LEN, Header, Kind};
use isopod_proto::{AGENT_PORT, STREAM_PORT};
use protobuf::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::Fake;

/// One connection to the vsock: the handshake, then the agent's service or a stream.
pub(super) async fn connection(
    mut stream: UnixStream,
    fake: Arc<Fake>,
    agents: mpsc::UnboundedSender<UnixStream>,
) -> std::io::Result<()> {
    let mut line = String::new();
    while !line.ends_with('\n') {
        line.push(char::from(stream.read_u8().await?));
    }
    let port = line
        .trim_end()
        .strip_prefix("CONNECT ")
        .and_then(|port| port.parse().ok());
    stream.write_all(b"OK 1073741824\n").await?;
    if port == Some(AGENT_PORT) {
        let _ended = agents.send(stream);
        return Ok(());
    }
    assert_eq!(port, Some(STREAM_PORT), "{line:?}");
    let (mut reader, mut writer) = stream.into_split();
    let (_open, payload) = receive(&mut reader).await?;
    let open = StreamOpen::parse_from_bytes(&payload)?;
    if open.role == StreamRole::STREAM_ROLE_PORT.into() {
        return forward(reader, writer, open.port).await;
    }
    let process = fake.process(&open.container_id, &open.exec_id).ok();
    let output = process
        .as_ref()
        .and_then(|process| process.output(open.role.enum_value_or_default()));
    let (Some(process), Some(mut output)) = (process, output) else {
        let text = b"no such process, or its output is taken";
        return send(&mut writer, Kind::Error, text).await;
    };
    send(&mut writer, Kind::Opened, b"").await?;
    let input = tokio::spawn(async move { process.take_input(reader).await });
    while let Some((kind, bytes)) = output.recv().await {
        send(&mut writer, kind, &bytes).await?;
    }
    send(&mut writer, Kind::End, b"").await?;
    input.abort();
    Ok(())
}

/// A connection to a port of this machine.
pub(super) async fn forward(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    port: u32,
) -> std::io::Result<()> {
    let connected = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            return send(&mut writer, Kind::Error, error.to_string().as_bytes()).await;
        }
    };
    send(&mut writer, Kind::Opened, b"").await?;
    let (mut from_port, to_port) = connection.into_split();
    let input = async {
        let mut to_port = Some(to_port);
        loop {
            match (receive(&mut reader).await?, &mut to_port) {
                ((Kind::Stdin, bytes), Some(open)) => {
                    let _gone = open.write_all(&bytes).await;
                }
                _ => to_port = None,
            }
        }
    };
    let output = async {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = from_port.read(&mut buffer).await {
            send(&mut writer, Kind::Stdout, &buffer[..count]).await?;
        }
        send(&mut writer, Kind::End, b"").await?;
        std::future::pending().await
    };
    tokio::select! {
        result = input => result,
        result = output => result,
    }
}

pub(super) async fn receive(stream: &mut OwnedReadHalf) -> std::io::Result<(Kind, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let header = Header::decode(header).map_err(std::io::Error::other)?;
    let mut payload = vec![0; header.len];
    stream.read_exact(&mut payload).await?;
    Ok((header.kind, payload))
}

pub(super) async fn send(
    stream: &mut OwnedWriteHalf,
    kind: Kind,
    payload: &[u8],
) -> std::io::Result<()> {
    stream
        .write_all(
            &Header {
                kind,
                len: payload.len(),
            }
            .encode(),
        )
        .await?;
    stream.write_all(payload).await
}

//! The server as its peers see it, well-behaved and not.

use std::time::Duration;

use crate::decode::{FrameDecoder, FrameError, ReadError};
use crate::frame::Frame;
use crate::testing::{self, ClientEncoder};
use crate::{ANSWERS_MAX, Connection, Headers, INBOUND_MAX, Stream, StreamError};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::io::{AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::timeout;
use tokio_util::codec::FramedRead;

/// Far longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for whatever can happen to happen.
const PAUSE: Duration = Duration::from_millis(200);

/// What the pipe between the two ends holds.
const PIPE: usize = 16 * 1024;

const CANCEL: u32 = 5;
const REFUSED: u32 = 3;

struct Client {
    encoder: ClientEncoder,
    frames: FramedRead<ReadHalf<DuplexStream>, FrameDecoder>,
    writer: WriteHalf<DuplexStream>,
}

fn connected(streams_max: usize) -> (Connection, Client) {
    let (near, far) = duplex(PIPE);
    let (reader, writer) = split(far);
    let client = Client {
        encoder: ClientEncoder::new(),
        frames: FramedRead::new(reader, FrameDecoder::new()),
        writer,
    };
    (Connection::start(near, streams_max), client)
}

impl Client {
    async fn send(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        self.writer.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32) {
        let mut bytes = BytesMut::new();
        let headers = Headers::new(&[("streamtype", "data")]);
        self.encoder.open(stream, &headers, &mut bytes);
        self.writer.write_all(&bytes).await.unwrap();
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.send(|out| testing::data(stream, bytes, fin, out))
            .await;
    }

    /// The next frame; none when the server has closed.
    async fn receive(&mut self) -> Option<Frame> {
        let frame = timeout(PATIENCE, self.frames.next()).await.unwrap();
        frame.map(Result::unwrap)
    }

    /// The next frame but those that widen windows.
    async fn receive_other(&mut self) -> Option<Frame> {
        loop {
            match self.receive().await {
                Some(Frame::WindowUpdate { .. }) => {}
                other => return other,
            }
        }
    }

    /// All data of a stream, up to its end.
    async fn receive_all(&mut self, wanted: u32) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.receive_other().await {
                Some(Frame::Data { stream, bytes, fin }) if stream == wanted => {
                    all.extend_from_slice(&bytes);
                    if fin {
                        return all;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn accept(connection: &mut Connection) -> Stream {
    let incoming = timeout(PATIENCE, connection.accept()).await.unwrap();
    incoming.unwrap().accept().1
}

/// A connection with stream 1 open.
async fn opened() -> (Connection, Client, Stream) {
    let (mut connection, mut client) = connected(8);
    client.open(1).await;
    let stream = accept(&mut connection).await;
    let fin = false;
    assert_eq!(
        client.receive().await,
        Some(Frame::SynReply { stream: 1, fin })
    );
    (connection, client, stream)
}

async fn close(mut connection: Connection) -> Result<(), ReadError> {
    connection.finish().await;
    connection.gone().await
}

fn reset(stream: u32, reason: u32) -> Option<Frame> {
    Some(Frame::Reset { stream, reason })
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_alone() {
    let (_connection, mut client, stream) = opened().await;
    let (mut reader, mut writer) = stream.split();
    client.data(1, b"hello", false).await;
    client.data(1, b"", true).await;
    assert_eq!(reader.next().await, Ok(Some(Bytes::from("hello"))));
    assert_eq!(reader.next().await, Ok(None));
    assert_eq!(reader.next().await, Ok(None));
    writer.write(Bytes::from("still here")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(client.receive_all(1).await, b"still here");
    assert_eq!(writer.write(Bytes::from("more")).await, Err(StreamError));
}

#[tokio::test]
async fn stream_ends_this_way_first_and_still_receives() {
    let (_connection, mut client, stream) = opened().await;
    let (mut reader, mut writer) = stream.split();
    writer.finish().await.unwrap();
    assert_eq!(client.receive_all(1).await, b"");
    client.data(1, b"late", true).await;
    assert_eq!(reader.next().await, Ok(Some(Bytes::from("late"))));
    assert_eq!(reader.next().await, Ok(None));
}

#[tokio::test]
async fn headers_reach_whoever_accepts_and_refusal_reaches_the_client() {
    let (mut connection, mut client) = connected(8);
    client.open(1).await;
    let incoming = connection.accept().await.unwrap();
    assert_eq!(incoming.headers().get("streamtype"), Some("data"));
    assert_eq!(incoming.id(), 1);
    drop(incoming);
    assert_eq!(client.receive().await, reset(1, REFUSED));
}

#[tokio::test]
async fn dropped_stream_is_reset() {
    let (_connection, mut client, stream) = opened().await;
    let (reader, writer) = stream.split();
    drop(writer);
    drop(reader);
    assert_eq!(client.receive().await, reset(1, CANCEL));
}

#[tokio::test]
async fn finished_stream_that_is_dropped_loses_nothing() {
    let (_connection, mut client, stream) = opened().await;
    let (reader, mut writer) = stream.split();
    drop(reader);
    let sent = tokio::spawn(async move {
        writer.write(Bytes::from(vec![7; 1 << 20])).await.unwrap();
        writer.finish().await.unwrap();
    });
    tokio::time::sleep(PAUSE).await;
    assert_eq!(client.receive_all(1).await.len(), 1 << 20);
    sent.await.unwrap();
}

#[tokio::test]
async fn reset_behind_data_does_not_overtake_it() {
    let (_connection, mut client, stream) = opened().await;
    let (_reader, mut writer) = stream.split();
    writer.write(Bytes::from("last words")).await.unwrap();
    writer.reset().await.unwrap();
    let (stream, bytes, fin) = (1, Bytes::from("last words"), false);
    let data = Frame::Data { stream, bytes, fin };
    assert_eq!(client.receive().await, Some(data));
    assert_eq!(client.receive().await, reset(1, CANCEL));
}

#[tokio::test]
async fn reset_by_the_client_ends_both_ways() {
    let (_connection, mut client, stream) = opened().await;
    let (mut reader, mut writer) = stream.split();
    client.data(1, b"before", false).await;
    client.send(|out| testing::reset(1, out)).await;
    assert_eq!(reader.next().await, Ok(Some(Bytes::from("before"))));
    assert_eq!(reader.next().await, Err(StreamError));
    assert_eq!(writer.write(Bytes::from("x")).await, Err(StreamError));
    assert_eq!(writer.finish().await, Err(StreamError));
    // The connection goes on.
    client.send(|out| testing::ping(1, out)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(1)));
}

#[tokio::test]
async fn one_way_streams_are_one_way() {
    let (mut connection, mut client) = connected(8);
    let headers = Headers::default();
    let mut bytes = BytesMut::new();
    client.encoder.open_half(1, &headers, true, &mut bytes);
    client.encoder.open_half(3, &headers, false, &mut bytes);
    client.writer.write_all(&bytes).await.unwrap();
    let (mut reader, mut writer) = accept(&mut connection).await.split();
    assert_eq!(reader.next().await, Ok(None));
    writer.write(Bytes::from("x")).await.unwrap();
    let (_reader, mut writer) = accept(&mut connection).await.split();
    assert_eq!(writer.write(Bytes::from("x")).await, Err(StreamError));
}

#[tokio::test]
async fn close_says_goodbye_behind_everything_else() {
    let (connection, mut client, stream) = opened().await;
    let (_unread, mut writer) = stream.split();
    writer.write(Bytes::from("all")).await.unwrap();
    writer.finish().await.unwrap();
    let closing = tokio::spawn(close(connection));
    assert_eq!(client.receive_all(1).await, b"all");
    assert_eq!(client.receive().await, Some(Frame::GoAway { reason: 0 }));
    assert_eq!(client.receive().await, None);
    assert!(!closing.is_finished());
    // What the client still sends does not disturb.
    client.data(1, &[0; 3 * INBOUND_MAX], false).await;
    client.open(3).await;
    drop(client);
    closing.await.unwrap().unwrap();
}

#[tokio::test]
async fn client_that_leaves_ends_every_stream() {
    let (mut connection, client, stream) = opened().await;
    let (mut reader, mut writer) = stream.split();
    drop(client);
    connection.gone().await.unwrap();
    assert_eq!(reader.next().await, Err(StreamError));
    assert_eq!(writer.write(Bytes::from("x")).await, Err(StreamError));
    assert!(connection.accept().await.is_none());
}

#[tokio::test]
async fn client_that_breaks_off_in_a_frame_is_an_error() {
    let (mut connection, mut client, _stream) = opened().await;
    client.writer.write_all(&[0, 0, 0, 1, 0]).await.unwrap();
    drop(client);
    assert!(matches!(connection.gone().await, Err(ReadError::Io(_))));
}

#[tokio::test]
async fn client_that_says_goodbye_keeps_its_streams() {
    let (mut connection, mut client, stream) = opened().await;
    client.send(testing::go_away).await;
    assert!(connection.accept().await.is_none());
    client.open(3).await;
    assert_eq!(client.receive().await, reset(3, REFUSED));
    let (_reader, mut writer) = stream.split();
    writer.write(Bytes::from("x")).await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(client.receive_all(1).await, b"x");
}

#[tokio::test]
async fn data_frame_of_any_length_is_handed_on_in_pieces() {
    let (_connection, mut client, stream) = opened().await;
    let len = (1 << 24) - 1;
    let sender = tokio::spawn(async move {
        client.data(1, &vec![9; len], true).await;
        client
    });
    let (mut reader, _writer) = stream.split();
    let mut total = 0;
    while let Some(piece) = reader.next().await.unwrap() {
        assert!(piece.len() <= INBOUND_MAX);
        total += piece.len();
    }
    assert_eq!(total, len);
    sender.await.unwrap();
}

#[tokio::test]
async fn stream_that_is_not_read_stops_the_client_and_loses_nothing() {
    let (_connection, mut client, stream) = opened().await;
    let len = 4 * INBOUND_MAX;
    let sender = tokio::spawn(async move {
        client.data(1, &vec![9; len], true).await;
        client
    });
    tokio::time::sleep(PAUSE).await;
    assert!(!sender.is_finished(), "{len} bytes went nowhere");
    let (mut reader, _writer) = stream.split();
    let mut total = 0;
    while let Some(piece) = reader.next().await.unwrap() {
        total += piece.len();
    }
    assert_eq!(total, len);
    sender.await.unwrap();
}

#[tokio::test]
async fn client_that_does_not_read_stops_the_writer_and_loses_nothing() {
    let (_connection, mut client, stream) = opened().await;
    let (_reader, mut writer) = stream.split();
    let len = 4 << 20;
    let sender = tokio::spawn(async move {
        writer.write(Bytes::from(vec![9; len])).await.unwrap();
        writer.finish().await.unwrap();
    });
    tokio::time::sleep(PAUSE).await;
    assert!(!sender.is_finished(), "{len} bytes went nowhere");
    assert_eq!(client.receive_all(1).await.len(), len);
    sender.await.unwrap();
}

#[tokio::test]
async fn client_that_does_not_read_its_answers_is_not_read_from() {
    let (_connection, mut client) = connected(8);
    let pings = 100 * (ANSWERS_MAX + PIPE);
    let sender = tokio::spawn(async move {
        for _ in 0..pings {
            client.send(|out| testing::ping(1, out)).await;
        }
        client
    });
    tokio::time::sleep(PAUSE).await;
    assert!(!sender.is_finished(), "{pings} answers are kept");
    sender.abort();
}

#[tokio::test]
async fn streams_over_the_limit_are_refused_until_others_end() {
    let (mut connection, mut client) = connected(2);
    client.open(1).await;
    client.open(3).await;
    let (first, _second) = (accept(&mut connection).await, accept(&mut connection).await);
    for stream in [1, 3] {
        let fin = false;
        assert_eq!(
            client.receive().await,
            Some(Frame::SynReply { stream, fin })
        );
    }
    client.open(5).await;
    assert_eq!(client.receive().await, reset(5, REFUSED));
    drop(first);
    assert_eq!(client.receive().await, reset(1, CANCEL));
    client.open(7).await;
    accept(&mut connection).await;
}

#[tokio::test]
async fn ten_thousand_streams_at_once_are_refused_but_for_the_first() {
    let (mut connection, client) = connected(100);
    let server = tokio::spawn(async move {
        let mut streams = Vec::new();
        while let Some(incoming) = connection.accept().await {
            streams.push(incoming.accept());
        }
        streams.len()
    });
    let Client {
        mut encoder,
        mut frames,
        mut writer,
    } = client;
    let sending = tokio::spawn(async move {
        let headers = Headers::new(&[("streamtype", "data")]);
        for number in 0..10_000 {
            let mut bytes = BytesMut::new();
            encoder.open(2 * number + 1, &headers, &mut bytes);
            writer.write_all(&bytes).await.unwrap();
        }
        let mut bytes = BytesMut::new();
        testing::go_away(&mut bytes);
        writer.write_all(&bytes).await.unwrap();
        writer
    });
    let (mut accepted, mut refused) = (0, 0);
    while accepted + refused < 10_000 {
        match timeout(PATIENCE, frames.next()).await.unwrap() {
            Some(Ok(Frame::SynReply { .. })) => accepted += 1,
            Some(Ok(Frame::Reset { .. })) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((accepted, refused), (100, 9_900));
    sending.await.unwrap();
    assert_eq!(server.await.unwrap(), 100);
}

#[tokio::test]
async fn ten_thousand_streams_one_after_the_other_leave_nothing() {
    let (mut connection, mut client) = connected(1);
    let server = tokio::spawn(async move {
        while let Some(incoming) = connection.accept().await {
            let (mut reader, mut writer) = incoming.accept().1.split();
            while let Some(piece) = reader.next().await.unwrap() {
                writer.write(piece).await.unwrap();
            }
            writer.finish().await.unwrap();
        }
    });
    for number in 0..10_000 {
        let id = 2 * number + 1;
        client.open(id).await;
        client.data(id, &number.to_be_bytes(), true).await;
        assert!(matches!(
            client.receive_other().await,
            Some(Frame::SynReply { .. })
        ));
        assert_eq!(client.receive_all(id).await, number.to_be_bytes());
    }
    drop(client);
    server.await.unwrap();
}

/// The connection must end with this, and the client must be told.
async fn broken(bytes: &[u8]) -> FrameError {
    let (mut connection, mut client, stream) = opened().await;
    client.writer.write_all(bytes).await.unwrap();
    let (mut reader, _writer) = stream.split();
    let read = timeout(PATIENCE, reader.next()).await.unwrap();
    assert_eq!(read, Err(StreamError), "{bytes:?}");
    assert!(connection.accept().await.is_none());
    assert_eq!(client.receive().await, Some(Frame::GoAway { reason: 1 }));
    assert_eq!(client.receive().await, None);
    match timeout(PATIENCE, close(connection)).await.unwrap() {
        Err(ReadError::Frame(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    let control = |kind, body: &[u8]| {
        let mut out = BytesMut::new();
        testing::control(kind, 0, body, &mut out);
        out
    };
    let length = |kind, len| FrameError::Length { kind, len };
    for (bytes, error) in [
        (control(1, &[0; 9]), FrameError::StreamZero(1)),
        (control(1, &[1; 9]), length(1, 9)),
        (control(1, &[1; 3]), length(1, 3)),
        (control(2, &[1; 2]), length(2, 2)),
        (control(3, &[0; 8]), FrameError::StreamZero(3)),
        (control(3, &[1; 12]), length(3, 12)),
        (control(4, &[0, 0, 0, 2, 0, 0]), length(4, 6)),
        (control(4, &[0xff; 12]), length(4, 12)),
        (control(6, &[0; 8]), length(6, 8)),
        (control(7, &[0; 4]), length(7, 4)),
        (control(9, &[0; 4]), length(9, 4)),
    ] {
        assert_eq!(broken(&bytes).await, error, "{bytes:?}");
    }
    assert_eq!(broken(&[0; 8]).await, FrameError::StreamZero(0));
    let http = broken(b"\x80GET / HTTP/1.1\r\n").await;
    assert!(matches!(http, FrameError::Version(_)), "{http}");
    let long = broken(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).await;
    assert_eq!(long, FrameError::TooLong(0xff_ffff));
    let mut twice = BytesMut::new();
    ClientEncoder::new().open(2, &Headers::default(), &mut twice);
    let even = broken(&twice).await;
    // Its compression begins anew, which the server cannot know.
    assert!(matches!(even, FrameError::Headers(_)), "{even}");
}

#[tokio::test]
async fn stream_numbers_must_be_odd_and_grow() {
    for number in [2, 1] {
        let (connection, mut client, _stream) = opened().await;
        client.open(number).await;
        assert_eq!(client.receive().await, Some(Frame::GoAway { reason: 1 }));
        let error = close(connection).await.unwrap_err();
        let ReadError::Frame(error) = error else {
            panic!("{error}")
        };
        assert_eq!(error, FrameError::StreamNumber(number));
    }
}

#[tokio::test]
async fn data_where_none_belongs_is_refused_and_the_rest_goes_on() {
    let (_connection, mut client, stream) = opened().await;
    client.data(9, b"x", false).await;
    assert_eq!(client.receive().await, reset(9, 2));
    client.data(1, b"x", true).await;
    client.data(1, b"y", false).await;
    assert_eq!(client.receive().await, reset(1, 9));
    // It is ended now, and what was on its way is let go.
    client.data(1, b"z", false).await;
    client.send(|out| testing::ping(3, out)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(3)));
    drop(stream);
}

#[tokio::test]
async fn unknown_frames_are_skipped() {
    let (_connection, mut client, _stream) = opened().await;
    client
        .send(|out| testing::control(10, 0xff, b"", out))
        .await;
    client
        .send(|out| testing::control(0xffff, 0, &[7; 100], out))
        .await;
    client.send(|out| testing::ping(1, out)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(1)));
}

#[tokio::test]
async fn window_is_kept_once_the_client_has_spoken_of_one() {
    let (_connection, mut client, stream) = opened().await;
    client.send(|out| testing::initial_window(10, out)).await;
    client.send(|out| testing::ping(1, out)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(1)));
    let (_reader, mut writer) = stream.split();
    let sender = tokio::spawn(async move {
        writer.write(Bytes::from(vec![1; 25])).await.unwrap();
        writer
    });
    let received = |len| {
        let (stream, bytes, fin) = (1, Bytes::from(vec![1; len]), false);
        Some(Frame::Data { stream, bytes, fin })
    };
    assert_eq!(client.receive().await, received(10));
    tokio::time::sleep(PAUSE).await;
    assert!(!sender.is_finished());
    client.send(|out| testing::window_update(1, 14, out)).await;
    assert_eq!(client.receive().await, received(14));
    client.send(|out| testing::reset(1, out)).await;
    assert!(sender.await.is_err(), "the wait ends with the stream");
}

#[tokio::test]
async fn windows_are_widened_as_data_is_consumed() {
    let (_connection, mut client, stream) = opened().await;
    client.data(1, &[0; 60 * 1024], true).await;
    let (mut reader, _writer) = stream.split();
    while reader.next().await.unwrap().is_some() {}
    let mut widened = [0_usize; 2];
    while widened.iter().any(|sum| *sum < 32 * 1024) {
        match client.receive().await {
            Some(Frame::WindowUpdate { stream, delta }) => {
                widened[stream as usize] += delta as usize;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn silent_client_is_asked_for_a_sign_of_life() {
    let (_connection, mut client, _stream) = opened().await;
    let frame = client.frames.next().await.unwrap().unwrap();
    assert_eq!(frame, Frame::Ping(2));
    client.send(|out| testing::ping(2, out)).await;
    let frame = client.frames.next().await.unwrap().unwrap();
    assert_eq!(frame, Frame::Ping(4));
}

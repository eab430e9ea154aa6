//! What the targets in `fuzz/` call, and a bounded test with every run: any bytes are frames, or
//! refused, and whatever a peer sends, the connection ends when the peer does.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncWriteExt as _, duplex, sink};
use tokio::task::JoinSet;

use crate::decode::{FrameDecoder, FrameError};
use crate::frame::Frame;
use crate::testing::{self, ClientEncoder};
use crate::{Connection, Stream};

/// Most streams that the connection has at a time.
const STREAMS_MAX: usize = 4;

/// Far longer than a connection takes to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads `data`, less its first byte, as frames: at once, and in pieces of that many bytes. Both
/// must come to the same.
pub fn frames(data: &[u8]) {
    let Some((&size, data)) = data.split_first() else {
        return;
    };
    let whole = decode(data, usize::MAX);
    assert_eq!(whole, decode(data, usize::from(size).max(1)));
    let carried: usize = whole.1;
    assert!(carried <= data.len(), "no byte is made up");
}

/// The frames without data, how much data there was, and the error at the end.
fn decode(data: &[u8], size: usize) -> (Vec<Frame>, usize, Option<FrameError>) {
    let (mut decoder, mut input) = (FrameDecoder::new(), BytesMut::new());
    let (mut frames, mut carried) = (Vec::new(), 0);
    for piece in data.chunks(size) {
        input.extend_from_slice(piece);
        loop {
            match decoder.next(&mut input) {
                Ok(Some(Frame::Data { bytes, .. })) => carried += bytes.len(),
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, carried, Some(error)),
            }
        }
    }
    (frames, carried, None)
}

/// Serves a client that sends what [`script`] makes of `data`, and then leaves.
///
/// # Panics
///
/// When the connection does not end, which is what is looked for.
pub fn connection(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without a thread");
    runtime.block_on(async {
        let served = tokio::time::timeout(PATIENCE, serve(script(data)));
        served.await.expect("the connection ends with its client");
    });
}

async fn serve(bytes: BytesMut) {
    let (near, far) = duplex(4096);
    let (mut reader, mut writer) = tokio::io::split(far);
    let client = async move {
        let heard = async {
            // Until the server hangs up, or all was said.
            let _closed = tokio::io::copy(&mut reader, &mut sink()).await;
        };
        let said = async {
            let _refused = writer.write_all(&bytes).await;
            let _closed = writer.shutdown().await;
        };
        tokio::join!(heard, said);
    };
    let server = async {
        let mut connection = Connection::start(near, STREAMS_MAX);
        let mut echoes = JoinSet::new();
        while let Some(incoming) = connection.accept().await {
            echoes.spawn(echo(incoming.accept().1));
        }
        // A broken protocol is as good an end as any.
        let _broken = connection.gone().await;
        connection.finish().await;
        while echoes.join_next().await.is_some() {}
    };
    tokio::join!(client, server);
}

async fn echo(stream: Stream) {
    let (mut reader, mut writer) = stream.split();
    while let Ok(Some(piece)) = reader.next().await {
        if writer.write(piece).await.is_err() {
            return;
        }
    }
    // The client may have left.
    let _left = writer.finish().await;
}

/// Frames as `data` says, so that the compression of headers is right, which nobody guesses: a byte
/// for what, one for the stream and one for the length of what follows.
fn script(mut data: &[u8]) -> BytesMut {
    let (mut out, mut encoder) = (BytesMut::new(), ClientEncoder::new());
    while data.len() >= 3 {
        let (what, stream, len) = (data.get_u8(), u32::from(data.get_u8()), data.get_u8());
        let body = &data[..usize::from(len).min(data.len())];
        data.advance(body.len());
        match what % 12 {
            0..=2 => encoder.open_raw(stream, what >> 6, body, &mut out),
            3..=5 => testing::data(stream, body, what > 127, &mut out),
            6 => testing::reset(stream, &mut out),
            7 => testing::ping(stream, &mut out),
            8 => testing::window_update(stream, u32::from(len) << 20, &mut out),
            9 => testing::initial_window(stream << (len % 24), &mut out),
            10 => testing::control(stream.try_into().unwrap_or(0), what, body, &mut out),
            _ => out.extend_from_slice(body),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn any_bytes_are_frames_or_refused_however_they_are_cut(
            data in prop::collection::vec(0_u8.., 0..600),
        ) {
            frames(&data);
        }

        #[test]
        fn any_script_is_frames_however_it_is_cut(
            data in prop::collection::vec(0_u8.., 0..600),
        ) {
            frames(&[&[7], &script(&data)[..]].concat());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn connection_ends_with_its_client_whatever_it_sends(
            data in prop::collection::vec(0_u8.., 0..600),
        ) {
            connection(&data);
        }
    }

    #[test]
    fn connection_ends_with_a_client_that_opens_and_sends() {
        let empty = [0, 0, 0, 0];
        let open = |stream| [&[0, stream, 4][..], &empty].concat();
        let data = |stream| [&[3, stream, 5][..], b"hello"].concat();
        let scripts = [
            [open(1), data(1), open(3), data(3)].concat(),
            [open(1), vec![9, 0, 0], data(1), data(1)].concat(),
            [open(1), open(3), open(5), open(7), open(9), open(11)].concat(),
            [open(1), vec![6, 1, 0], data(1)].concat(),
        ];
        for script in scripts {
            connection(&script);
        }
    }
}

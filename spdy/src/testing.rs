//! The client's side: frames as Kubernetes' clients send them, and as they never would.

use bytes::{BufMut, BytesMut};
use flate2::{Compress, Compression, FlushCompress};

use crate::dictionary::dictionary;
use crate::frame::{FLAG_FIN, FLAG_UNIDIRECTIONAL, kind, put_control, put_data};
use crate::headers::Headers;

/// Writes a client's frames.
#[derive(Debug)]
pub struct ClientEncoder {
    compress: Compress,
}

impl Default for ClientEncoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ClientEncoder {
    /// For a connection on which nothing was sent yet.
    ///
    /// # Panics
    ///
    /// Never: the dictionary fits.
    #[must_use]
    pub fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        compress
            .set_dictionary(&dictionary())
            .expect("a fresh state takes a dictionary");
        Self { compress }
    }

    /// A stream with these headers.
    pub fn open(&mut self, stream: u32, headers: &Headers, out: &mut BytesMut) {
        self.open_raw(stream, 0, &headers.block(), out);
    }

    /// A stream that is opened one way, already ended, or both.
    pub fn open_half(&mut self, stream: u32, headers: &Headers, fin: bool, out: &mut BytesMut) {
        let flags = if fin { FLAG_FIN } else { FLAG_UNIDIRECTIONAL };
        self.open_raw(stream, flags, &headers.block(), out);
    }

    /// A stream with any bytes for a header block.
    ///
    /// # Panics
    ///
    /// When the block does not compress to less than a frame's length.
    pub fn open_raw(&mut self, stream: u32, flags: u8, block: &[u8], out: &mut BytesMut) {
        let mut body = BytesMut::new();
        body.put_u32(stream);
        body.put_u32(0);
        body.put_u16(0);
        let mut compressed = Vec::with_capacity(block.len() + 1024);
        self.compress
            .compress_vec(block, &mut compressed, FlushCompress::Sync)
            .expect("there is room");
        body.put_slice(&compressed);
        put_control(kind::SYN_STREAM, flags, &body, out);
    }
}

/// Data on a stream.
pub fn data(stream: u32, bytes: &[u8], fin: bool, out: &mut BytesMut) {
    put_data(stream, bytes, fin, out);
}

/// The end of a stream at once.
pub fn reset(stream: u32, out: &mut BytesMut) {
    words(kind::RST_STREAM, &[stream, 5], out);
}

/// A question that is answered with itself.
pub fn ping(id: u32, out: &mut BytesMut) {
    words(kind::PING, &[id], out);
}

/// The client opens no more streams.
pub fn go_away(out: &mut BytesMut) {
    words(kind::GOAWAY, &[0, 0], out);
}

/// Room for more data; on all streams together for 0.
pub fn window_update(stream: u32, delta: u32, out: &mut BytesMut) {
    words(kind::WINDOW_UPDATE, &[stream, delta], out);
}

/// Room for data on fresh streams.
pub fn initial_window(size: u32, out: &mut BytesMut) {
    words(kind::SETTINGS, &[1, 7, size], out);
}

/// A control frame of any type.
pub fn control(kind: u16, flags: u8, body: &[u8], out: &mut BytesMut) {
    put_control(kind, flags, body, out);
}

fn words(kind: u16, words: &[u32], out: &mut BytesMut) {
    let body: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    put_control(kind, 0, &body, out);
}

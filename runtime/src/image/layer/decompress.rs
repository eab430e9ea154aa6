//! From a layer's blob to its archive.

use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

const INPUT_BUFFER: usize = 128 << 10;

/// The largest window a zstd frame may ask for, as a power of two: 128 MiB, the format's own
/// recommendation for decoders (RFC 8878, 3.1.1.1.2, raised as the `zstd` tool does).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What was read ahead to look at, and the rest.
pub(crate) type Input<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

/// A layer's blob, or another archive, seen uncompressed.
pub(crate) enum Decompressor<R: Read> {
    /// Not compressed.
    Plain(Input<R>),
    /// gzip, of any number of members.
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    /// zstd, of any number of frames.
    Zstd(Box<zstd::Decoder<'static, Input<R>>>),
}

impl<R: Read> Decompressor<R> {
    /// Told from the first bytes: media types are wrong too often, and no archive begins like
    /// another format's magic number.
    pub(crate) fn new(mut input: R) -> io::Result<Self> {
        let mut start = Vec::with_capacity(4);
        (&mut input).take(4).read_to_end(&mut start)?;
        let magic: [u8; 4] = start.as_slice().try_into().unwrap_or_default();
        let input = BufReader::with_capacity(INPUT_BUFFER, Cursor::new(start).chain(input));
        Ok(match magic {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let mut decoder = zstd::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Self::Zstd(Box::new(decoder))
            }
            _ => Self::Plain(input),
        })
    }

    /// What is left of the compressed input.
    pub(super) fn into_inner(self) -> Input<R> {
        match self {
            Self::Plain(input) => input,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

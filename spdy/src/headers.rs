//! Header blocks: names and values, compressed with a state that lasts as long as the connection.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use crate::dictionary::{ID, dictionary};

/// Longest header block, in bytes, decompressed.
pub const BLOCK_MAX: usize = 8 * 1024;

/// Most headers in a block.
pub const HEADERS_MAX: usize = 32;

/// A stream's headers: names in lower case, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Bytes, Bytes)>);

/// A header block that cannot be read. Nothing behind it can: the state of the compression is lost.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The bytes are not zlib's.
    #[error("the header block cannot be decompressed")]
    Compression,
    /// It has more than [`BLOCK_MAX`] bytes.
    #[error("the header block has more than {BLOCK_MAX} bytes")]
    TooLong,
    /// It has more than [`HEADERS_MAX`] headers.
    #[error("the header block has more than {HEADERS_MAX} headers")]
    TooMany,
    /// A length reaches behind the end, or something follows the last header.
    #[error("a length in the header block is wrong")]
    Length,
    /// A name is empty or has other than lower-case ASCII characters.
    #[error("a header's name is empty or not in lower case")]
    Name,
    /// A name occurs twice.
    #[error("two headers have the same name")]
    Duplicate,
}

impl Headers {
    /// Headers with these names and values.
    #[must_use]
    pub fn new(pairs: &[(&str, &str)]) -> Self {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        Self(pairs.iter().map(|(n, v)| (bytes(n), bytes(v))).collect())
    }

    /// The value of a header, if it is there and is text.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The block of SPDY/3 section 2.6.10, not compressed.
    #[must_use]
    pub fn block(&self) -> Bytes {
        let mut block = BytesMut::new();
        block.put_u32(len(self.0.len()));
        for (name, value) in &self.0 {
            for part in [name, value] {
                block.put_u32(len(part.len()));
                block.put_slice(part);
            }
        }
        block.freeze()
    }

    fn parse(block: &Bytes) -> Result<Self, HeaderError> {
        let mut rest = block.clone();
        let count = take_u32(&mut rest)?;
        if count > HEADERS_MAX {
            return Err(HeaderError::TooMany);
        }
        let mut headers = Self(Vec::with_capacity(count));
        for _ in 0..count {
            let name = take_part(&mut rest)?;
            let value = take_part(&mut rest)?;
            if name.is_empty() || !name.iter().all(is_name) {
                return Err(HeaderError::Name);
            }
            if headers.0.iter().any(|(known, _)| *known == name) {
                return Err(HeaderError::Duplicate);
            }
            headers.0.push((name, value));
        }
        if rest.is_empty() {
            Ok(headers)
        } else {
            Err(HeaderError::Length)
        }
    }
}

fn is_name(byte: &u8) -> bool {
    byte.is_ascii_graphic() && !byte.is_ascii_uppercase()
}

fn len(len: usize) -> u32 {
    u32::try_from(len).expect("header blocks are made of short strings")
}

fn take(rest: &mut Bytes, len: usize) -> Result<Bytes, HeaderError> {
    if len > rest.len() {
        return Err(HeaderError::Length);
    }
    Ok(rest.split_to(len))
}

fn take_u32(rest: &mut Bytes) -> Result<usize, HeaderError> {
    let word = take(rest, 4)?.get_u32();
    usize::try_from(word).map_err(|_large| HeaderError::Length)
}

fn take_part(rest: &mut Bytes) -> Result<Bytes, HeaderError> {
    let len = take_u32(rest)?;
    take(rest, len)
}

/// Reads a peer's header blocks, in the order in which they come.
#[derive(Debug)]
pub(crate) struct HeaderReader {
    inflate: Decompress,
}

impl HeaderReader {
    pub(crate) fn new() -> Self {
        Self {
            inflate: Decompress::new(true),
        }
    }

    /// Reads one block.
    ///
    /// # Errors
    ///
    /// [`HeaderError`]; no later block can be read then.
    pub(crate) fn read(&mut self, compressed: &[u8]) -> Result<Headers, HeaderError> {
        let mut block = vec![0; BLOCK_MAX + 1];
        let mut length = 0;
        let mut input = compressed;
        loop {
            let (begun_in, begun_out) = (self.inflate.total_in(), self.inflate.total_out());
            let flush = FlushDecompress::Sync;
            let result = self.inflate.decompress(input, &mut block[length..], flush);
            let consumed = moved(begun_in, self.inflate.total_in());
            let produced = moved(begun_out, self.inflate.total_out());
            input = &input[consumed..];
            length += produced;
            if length > BLOCK_MAX {
                return Err(HeaderError::TooLong);
            }
            match result {
                Ok(Status::StreamEnd) => return Err(HeaderError::Compression),
                Ok(_) if input.is_empty() => break,
                Ok(_) if consumed == 0 && produced == 0 => return Err(HeaderError::Compression),
                Ok(_) => {}
                Err(error) if error.needs_dictionary() == Some(ID) => {
                    let set = self.inflate.set_dictionary(&dictionary());
                    set.map_err(|_refused| HeaderError::Compression)?;
                }
                Err(_) => return Err(HeaderError::Compression),
            }
        }
        block.truncate(length);
        Headers::parse(&block.into())
    }
}

fn moved(before: u64, after: u64) -> usize {
    usize::try_from(after - before).expect("no more than the slices hold")
}

/// Appends a block to what the peer decompresses, stored rather than compressed: what a server says
/// here is four bytes long. `first` says that nothing was sent before.
pub(crate) fn store(headers: &Headers, first: bool, out: &mut BytesMut) {
    if first {
        // RFC 1950 section 2.2: deflate with a window of 32 KiB, preset dictionary, check bits.
        out.put_u16(0x7820);
        out.put_u32(ID);
    }
    store_block(&headers.block(), out);
    // The empty one of a zlib flush, without which Go's decompressor waits for more.
    store_block(&[], out);
}

/// RFC 1951 section 3.2.4: not the last block, stored; its length and the complement.
fn store_block(bytes: &[u8], out: &mut BytesMut) {
    let len = u16::try_from(bytes.len()).expect("a server's headers are short");
    out.put_u8(0);
    out.put_u16_le(len);
    out.put_u16_le(!len);
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    struct Writer(Compress);

    impl Writer {
        fn new() -> Self {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&dictionary()).unwrap();
            Self(compress)
        }

        fn write(&mut self, block: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(block.len() + 1024);
            let flush = FlushCompress::Sync;
            self.0.compress_vec(block, &mut out, flush).unwrap();
            out
        }
    }

    fn read_raw(block: &[u8]) -> Result<Headers, HeaderError> {
        HeaderReader::new().read(&Writer::new().write(block))
    }

    #[test]
    fn blocks_are_read_one_after_the_other() {
        let (mut writer, mut reader) = (Writer::new(), HeaderReader::new());
        for id in 0..100 {
            let id = id.to_string();
            let headers = Headers::new(&[("streamtype", "data"), ("requestid", &id)]);
            let read = reader.read(&writer.write(&headers.block())).unwrap();
            assert_eq!(read, headers);
            assert_eq!(read.get("requestid"), Some(id.as_str()));
            assert_eq!(read.get("port"), None);
        }
    }

    #[test]
    fn stored_blocks_are_what_a_reader_expects() {
        let mut reader = HeaderReader::new();
        for round in 0..3 {
            let mut out = BytesMut::new();
            store(&Headers::default(), round == 0, &mut out);
            assert!(out.ends_with(&[0, 0, 0, 0xff, 0xff]), "flushed");
            assert_eq!(reader.read(&out), Ok(Headers::default()));
        }
    }

    #[test]
    fn a_few_bytes_that_become_many_are_refused() {
        let bomb = Writer::new().write(&vec![0; 16 << 20]);
        assert!(bomb.len() < 32 * 1024);
        assert_eq!(HeaderReader::new().read(&bomb), Err(HeaderError::TooLong));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let one = [0, 0, 0, 1];
        for block in [
            &b""[..],
            &[0, 0, 0],
            &one,
            &[&one[..], &[0xff; 4]].concat(),
            &[&one[..], &[0, 0, 0, 1, b'a']].concat(),
            &[&one[..], &[0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b']].concat(),
            &[0, 0, 0, 0, 7],
        ] {
            assert_eq!(read_raw(block), Err(HeaderError::Length), "{block:?}");
        }
        assert_eq!(read_raw(&[0xff; 4]), Err(HeaderError::TooMany));
    }

    #[test]
    fn names_are_checked() {
        let block = |name| Headers::new(&[(name, "value")]).block();
        for name in ["", "Port", "a b", "é"] {
            assert_eq!(read_raw(&block(name)), Err(HeaderError::Name), "{name:?}");
        }
        let twice = Headers::new(&[("a", "1"), ("a", "2")]).block();
        assert_eq!(read_raw(&twice), Err(HeaderError::Duplicate));
    }

    #[test]
    fn stream_that_ends_or_has_another_dictionary_is_refused() {
        let refused = Err(HeaderError::Compression);
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(b"another").unwrap();
        let mut out = Vec::with_capacity(100);
        let flush = FlushCompress::Sync;
        compress.compress_vec(&[0; 4], &mut out, flush).unwrap();
        assert_eq!(HeaderReader::new().read(&out), refused);

        let mut compress = Compress::new(Compression::best(), true);
        let mut out = Vec::with_capacity(100);
        let finish = FlushCompress::Finish;
        compress.compress_vec(&[0; 4], &mut out, finish).unwrap();
        assert_eq!(HeaderReader::new().read(&out), refused);
        assert_eq!(HeaderReader::new().read(b"garbage!"), refused);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(blocks in prop::collection::vec(prop::collection::vec(0_u8.., 0..200), 0..4)) {
            let mut reader = HeaderReader::new();
            for block in blocks {
                let _ = reader.read(&block);
            }
        }

        #[test]
        fn any_block_is_read_or_refused(block in prop::collection::vec(0_u8.., 0..300)) {
            let _ = read_raw(&block);
        }
    }
}

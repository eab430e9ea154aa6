//! How to make a layer's archive again, byte for byte, from its data blob.
//!
//! The data blob has what the files contain; everything else that an archive consists of (headers as
//! somebody wrote them, padding, what follows its end) is kept here. Without it a layer could be
//! mounted, and never be given to anybody else under its own digest.
//!
//! ```text
//! record   u32 length, that many bytes; u64 where in the data blob, u64 how many bytes of it
//! ...      up to the end of the zstd frame that all records are in
//! u64      length of the archive
//! ```
//!
//! Everything is little-endian. Most of it is zeros and repetitions: some twenty bytes per file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

/// Literal bytes of a record at most.
const LITERAL_MAX: usize = 64 << 10;

/// Bytes of the data blob copied at a time.
const COPY: usize = 256 << 10;

/// The fastest levels cost less than hashing the same bytes.
const ZSTD_LEVEL: i32 = 1;

const TRAILER: u64 = 8;

/// A part of the data blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    offset: u64,
    length: u64,
}

/// The archive as it is read, and its recipe as it is written.
pub(super) struct Recorder<R> {
    input: BufReader<R>,
    output: zstd::Encoder<'static, BufWriter<File>>,
    /// Of the record in the making.
    literal: Vec<u8>,
    run: Option<Run>,
    /// Where what is consumed next is in the data blob, if it is there.
    stored_at: Option<u64>,
    bytes: u64,
    /// Consuming cannot fail, so what failed waits here.
    failed: Option<io::Error>,
}

impl<R: Read> Recorder<R> {
    pub(super) fn new(input: BufReader<R>, file: File) -> io::Result<Self> {
        let output = BufWriter::with_capacity(64 << 10, file);
        Ok(Self {
            input,
            output: zstd::Encoder::new(output, ZSTD_LEVEL)?,
            literal: Vec::new(),
            run: None,
            stored_at: None,
            bytes: 0,
            failed: None,
        })
    }

    /// What is consumed next is in the data blob, from this place on.
    pub(super) fn stored_at(&mut self, offset: u64) {
        self.stored_at = Some(offset);
    }

    /// Whether everything could be written so far.
    pub(super) fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Makes the recipe durable. What is left of the input comes back.
    pub(super) fn finish(mut self) -> io::Result<R> {
        self.end_record();
        self.check()?;
        let mut output = self.output.finish()?;
        output.write_all(&self.bytes.to_le_bytes())?;
        let file = output
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_data()?;
        Ok(self.input.into_inner())
    }

    fn record(&mut self, length: usize) {
        self.bytes += length as u64;
        let Some(offset) = self.stored_at.take() else {
            if self.run.is_some() || self.literal.len() + length > LITERAL_MAX {
                self.end_record();
            }
            // What is longer than a record is cut up.
            for part in self.input.buffer()[..length].chunks(LITERAL_MAX) {
                if self.literal.len() + part.len() > LITERAL_MAX {
                    let written = write_record(&mut self.output, &self.literal, None);
                    self.failed = self.failed.take().or(written.err());
                    self.literal.clear();
                }
                self.literal.extend_from_slice(part);
            }
            return;
        };
        let length = length as u64;
        match &mut self.run {
            Some(run) if run.offset + run.length == offset => run.length += length,
            Some(_) => {
                self.end_record();
                self.run = Some(Run { offset, length });
            }
            None => self.run = Some(Run { offset, length }),
        }
    }

    fn end_record(&mut self) {
        if self.literal.is_empty() && self.run.is_none() {
            return;
        }
        let written = write_record(&mut self.output, &self.literal, self.run.take());
        self.failed = self.failed.take().or(written.err());
        self.literal.clear();
    }
}

fn write_record(output: &mut impl Write, literal: &[u8], run: Option<Run>) -> io::Result<()> {
    let run = run.unwrap_or(Run {
        offset: 0,
        length: 0,
    });
    let length = u32::try_from(literal.len()).map_err(io::Error::other)?;
    output.write_all(&length.to_le_bytes())?;
    output.write_all(literal)?;
    output.write_all(&run.offset.to_le_bytes())?;
    output.write_all(&run.length.to_le_bytes())
}

impl<R: Read> Read for Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: Read> BufRead for Recorder<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        if length > 0 {
            self.record(length);
            self.input.consume(length);
        }
    }
}

/// A recipe and the data blob that it is about, open.
#[derive(Debug)]
pub(crate) struct Recipe {
    recipe: File,
    data: File,
    /// Length of the archive, in bytes.
    pub(crate) bytes: u64,
}

impl Recipe {
    /// Looks at the recipe's end.
    ///
    /// # Errors
    /// It cannot be read, or is not one.
    pub(crate) fn new(recipe: File, data: File) -> io::Result<Self> {
        let end = recipe.metadata()?.len().checked_sub(TRAILER);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut bytes = [0; 8];
        recipe.read_exact_at(&mut bytes, end)?;
        Ok(Self {
            recipe,
            data,
            bytes: u64::from_le_bytes(bytes),
        })
    }

    /// Writes the archive. Its digest is the caller's to check. Blocking.
    ///
    /// # Errors
    /// The files cannot be read or do not make sense, or `output` fails.
    pub(crate) fn write(mut self, output: &mut impl Write) -> io::Result<()> {
        let end = self.recipe.seek(SeekFrom::End(0))?;
        self.recipe.rewind()?;
        let records = self.recipe.take(end.saturating_sub(TRAILER));
        let mut records = BufReader::new(zstd::Decoder::new(records)?);
        let (mut literal, mut buffer) = (Vec::new(), vec![0; COPY]);
        while !records.fill_buf()?.is_empty() {
            let length = u32::from_le_bytes(array(&mut records)?) as usize;
            if length > LITERAL_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            literal.resize(length, 0);
            records.read_exact(&mut literal)?;
            output.write_all(&literal)?;
            let mut offset = u64::from_le_bytes(array(&mut records)?);
            let mut left = u64::from_le_bytes(array(&mut records)?);
            while left > 0 {
                let part = usize::try_from(left).unwrap_or(usize::MAX).min(COPY);
                self.data.read_exact_at(&mut buffer[..part], offset)?;
                output.write_all(&buffer[..part])?;
                offset = offset.saturating_add(part as u64);
                left -= part as u64;
            }
        }
        Ok(())
    }
}

fn array<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::super::{DATA, IngestLimits, RECIPE, ingest};
    use super::*;
    use crate::image::digest::Digest;
    use crate::image::tar::{END, file_header, padding};

    /// The archive that comes back when this one is taken in.
    fn made_again(archive: &[u8]) -> Vec<u8> {
        let folder = TempDir::new().expect("a directory");
        let limits = IngestLimits::from_mib(1024);
        let ingested = ingest(archive, folder.path(), limits).expect("an archive");
        assert_eq!(ingested.diff_id, Digest::of(archive));
        let open = |name: &str| File::open(folder.path().join(name)).expect("a file");
        let recipe = Recipe::new(open(RECIPE), open(DATA)).expect("a recipe");
        assert_eq!(recipe.bytes, archive.len() as u64);
        let mut again = Vec::new();
        recipe.write(&mut again).expect("an archive");
        again
    }

    fn archive(files: &[Vec<u8>], end: &[u8]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (number, data) in files.iter().enumerate() {
            let size = data.len() as u64;
            archive.extend(file_header(&format!("f{number}"), size));
            archive.extend(data);
            archive.extend(padding(size));
        }
        archive.extend(end);
        archive
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_archive_comes_back_byte_for_byte(
            sizes in prop::collection::vec(0_usize..300_000, 0..6),
            byte in any::<u8>(),
            after in 0_usize..200_000,
        ) {
            let files: Vec<Vec<u8>> = sizes.iter().map(|size| vec![byte; *size]).collect();
            let end = [END.as_slice(), &vec![byte; after]].concat();
            let archive = archive(&files, &end);
            prop_assert!(made_again(&archive) == archive);
        }
    }

    #[test]
    fn an_archive_without_an_end_or_without_anything_comes_back() {
        for archive in [
            archive(&[b"x".to_vec()], &[]),
            archive(&[], &END),
            archive(&[vec![7; 512]], &END[..512]),
        ] {
            assert_eq!(made_again(&archive), archive);
        }
    }

    #[test]
    fn archives_of_gnu_tar_come_back_with_sparse_files_and_long_names() {
        let folder = TempDir::new().expect("a directory");
        let sparse = File::create(folder.path().join("sparse")).expect("a file");
        sparse.write_all_at(b"middle", 3 << 20).expect("written");
        sparse.set_len(9 << 20).expect("longer");
        std::fs::write(folder.path().join("n".repeat(200)), "long").expect("written");
        std::fs::hard_link(folder.path().join("sparse"), folder.path().join("z")).expect("a link");
        for format in ["gnu", "posix"] {
            let output = std::process::Command::new("tar")
                .args(["--sparse", "--format", format, "-cf", "-", "."])
                .current_dir(&folder)
                .output()
                .expect("tar");
            assert!(output.status.success());
            assert!(output.stdout.len() < 1 << 20, "not sparse");
            assert!(made_again(&output.stdout) == output.stdout, "{format}");
        }
    }

    #[test]
    fn a_recipe_that_is_cut_short_is_an_error() {
        let folder = TempDir::new().expect("a directory");
        let archive = archive(&[vec![1; 10_000]], &END);
        let limits = IngestLimits::from_mib(1);
        ingest(archive.as_slice(), folder.path(), limits).expect("an archive");
        let path = folder.path().join(RECIPE);
        let whole = std::fs::read(&path).expect("a recipe");
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("written");
            let data = File::open(folder.path().join(DATA)).expect("data");
            let recipe = Recipe::new(File::open(&path).expect("a recipe"), data);
            let written = recipe.and_then(|recipe| {
                let (bytes, mut again) = (recipe.bytes, Vec::new());
                recipe.write(&mut again).map(|()| (bytes, again))
            });
            if let Ok((bytes, again)) = written {
                assert!(
                    bytes != archive.len() as u64 || again != archive,
                    "{length}"
                );
            }
        }
    }
}

//! `isopod image export`: images to an OCI archive or folder.

use std::io::{self, BufReader, BufWriter, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};

use isopod_proto::images::{ExportPart, ExportRequest};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::ImagesError;
use super::interrupt::unless_interrupted;
use super::output::Output;
use crate::client::Client;
use crate::image::unpack;

/// Parts on their way to the thread that unpacks them.
const QUEUE: usize = 4;

/// Options of `isopod image export`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// Names, digests or ids of images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// The archive or folder to make [default: standard output]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Make a folder, which is not there yet, instead of an archive
    #[arg(long, requires = "output")]
    folder: bool,
}

/// Writes the archive or the folder. It appears when it is complete, or not at all.
///
/// # Errors
/// The daemon cannot be reached, or does not have an image; the archive cannot be written; a signal
/// ends it.
pub(crate) async fn export(args: &ExportArgs, socket: &Path) -> Result<(), ImagesError> {
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(ImagesError::Terminal);
    }
    let mut client = Client::connect(socket).await?;
    let request = ExportRequest {
        images: args.images.clone(),
    };
    let parts = client.images.export(request).await?.into_inner();
    match &args.output {
        None => copy(parts, io::stdout().lock(), Path::new("standard output")).await,
        Some(path) if args.folder => unless_interrupted(to_folder(parts, path)).await,
        Some(path) => unless_interrupted(to_file(parts, path)).await,
    }
}

async fn to_file(parts: Streaming<ExportPart>, path: &Path) -> Result<(), ImagesError> {
    let beside = beside(path);
    let output = Output::new_in(beside).map_err(ImagesError::file("making a file in", beside))?;
    copy(parts, BufWriter::new(output.file()), path).await?;
    output
        .name(path)
        .map_err(ImagesError::file("writing", path))
}

/// The folder that `path` is in.
fn beside(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

async fn copy(
    mut parts: Streaming<ExportPart>,
    mut output: impl Write,
    path: &Path,
) -> Result<(), ImagesError> {
    while let Some(part) = parts.message().await? {
        let written = output.write_all(&part.data);
        written.map_err(ImagesError::file("writing", path))?;
    }
    output.flush().map_err(ImagesError::file("writing", path))
}

async fn to_folder(mut parts: Streaming<ExportPart>, path: &Path) -> Result<(), ImagesError> {
    let beside = beside(path);
    let temporary = tempfile::Builder::new()
        .prefix(".export-")
        .tempdir_in(beside)
        .map_err(ImagesError::file("making a folder in", beside))?;
    let folder = temporary.path().join("layout");
    std::fs::create_dir(&folder).map_err(ImagesError::file("making", &folder))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    // The folder goes when its thread ends, however that comes: nobody writes into it then.
    let unpacking = tokio::task::spawn_blocking(move || {
        let received = BufReader::new(Received::new(receiver));
        unpack(received, &folder).map(|()| (temporary, folder))
    });
    let received = async {
        while let Some(part) = parts.message().await? {
            // Whoever does not want the rest knows why.
            if sender.send(part.data).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok::<(), ImagesError>(())
    };
    let received = received.await;
    let unpacked = unpacking
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    // If both failed, then the second because of the first.
    received?;
    let (_temporary, folder) = unpacked?;
    std::fs::rename(&folder, path).map_err(ImagesError::file("making", path))
}

/// What arrives, as something to read from a blocking thread.
struct Received {
    parts: mpsc::Receiver<Vec<u8>>,
    part: io::Cursor<Vec<u8>>,
}

impl Received {
    fn new(parts: mpsc::Receiver<Vec<u8>>) -> Self {
        Self {
            parts,
            part: io::Cursor::default(),
        }
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.part.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            match self.parts.blocking_recv() {
                Some(part) => self.part = io::Cursor::new(part),
                None => return Ok(0),
            }
        }
    }
}

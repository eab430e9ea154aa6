//! `isopod image export`: images to an OCI archive.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use isopod_proto::images::ExportRequest;

use super::ImagesError;
use crate::client::Client;

/// Options of `isopod image export`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// Names, digests or ids of images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// The archive to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the archive. A file appears when it is complete, or not at all.
///
/// # Errors
/// The daemon cannot be reached, or does not have an image; the archive cannot be written.
pub(crate) async fn export(args: &ExportArgs, socket: &Path) -> Result<(), ImagesError> {
    if args.output.is_none() && std::io::stdout().is_terminal() {
        return Err(ImagesError::Terminal);
    }
    let mut client = Client::connect(socket).await?;
    let Some(path) = &args.output else {
        let stdout = std::io::stdout().lock();
        return copy(&mut client, args, stdout, Path::new("standard output")).await;
    };
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let temporary = tempfile::NamedTempFile::new_in(folder)
        .map_err(ImagesError::file("making a file in", folder))?;
    let file: &File = temporary.as_file();
    copy(&mut client, args, BufWriter::new(file), path).await?;
    let kept = temporary.persist(path);
    kept.map_err(|error| ImagesError::file("writing", path)(error.error))?;
    Ok(())
}

async fn copy(
    client: &mut Client,
    args: &ExportArgs,
    mut output: impl Write,
    path: &Path,
) -> Result<(), ImagesError> {
    let request = ExportRequest {
        images: args.images.clone(),
    };
    let mut parts = client.images.export(request).await?.into_inner();
    while let Some(part) = parts.message().await? {
        let written = output.write_all(&part.data);
        written.map_err(ImagesError::file("writing", path))?;
    }
    output.flush().map_err(ImagesError::file("writing", path))
}

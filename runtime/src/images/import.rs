//! `isopod image import`: images from a folder or an archive, for nodes that reach no registry.
//!
//! The archive is served at a unix socket beside the daemon's, and the daemon pulls from there: what
//! is imported is checked as what is pulled.

use std::path::{Path, PathBuf};

use isopod_proto::images::PullRequest;

use super::ImagesError;
use super::interrupt::unless_interrupted;
use super::pull::follow;
use crate::client::Client;
use crate::image::{Layout, NamedImage, Place, Served};

/// Options of `isopod image import`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// An OCI layout: a folder, an archive, a compressed archive, or - for standard input
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// What to call the image [default: the names in the layout]
    #[arg(long, value_name = "REFERENCE")]
    name: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Imports every image and prints its name.
///
/// # Errors
/// The layout cannot be read, or has no names; the daemon cannot be reached, or refuses an image; a
/// signal ends it.
pub(crate) async fn import(args: &ImportArgs, socket: &Path) -> Result<(), ImagesError> {
    let layout = Layout::open(&args.path)?;
    let images = layout.images(args.name.as_deref())?;
    unless_interrupted(serve(layout, images, args.quiet, socket)).await
}

/// Serves the layout until the daemon has pulled these images.
async fn serve(
    layout: Layout,
    images: Vec<NamedImage>,
    quiet: bool,
    socket: &Path,
) -> Result<(), ImagesError> {
    let mut client = Client::connect(socket).await?;
    let beside = socket.parent().unwrap_or(Path::new("/"));
    let place = Place::new(beside)?;
    let registry = place.socket();
    let served = Served::start(layout, &registry)?;
    for image in images {
        served.offer(&image);
        let request = PullRequest {
            image: image.name.clone(),
            registry_socket: registry.display().to_string(),
            ..PullRequest::default()
        };
        follow(&mut client, request, quiet).await?;
        println!("Imported: {}", image.name);
    }
    Ok(())
}

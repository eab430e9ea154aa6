//! `isopod pull`: an image from its registry, and how far it is.

use std::path::Path;

use isopod_proto::images::PullRequest;
use isopod_proto::images::pull_event::Event;

use super::ImagesError;
use super::progress::Display;
use crate::client::Client;

/// Options of `isopod pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// Names of images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// What opens the registry [default: what the daemon's credentials_file has]. Other users can see
    /// a command line
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Pulls one image after the other and prints their ids.
///
/// # Errors
/// The daemon cannot be reached; an image cannot be pulled.
pub(crate) async fn pull(args: &PullArgs, socket: &Path) -> Result<(), ImagesError> {
    let mut client = Client::connect(socket).await?;
    let (username, password) = match &args.creds {
        None => ("", ""),
        Some(creds) => creds.split_once(':').unwrap_or((creds, "")),
    };
    for image in &args.images {
        let request = PullRequest {
            image: image.clone(),
            username: username.to_owned(),
            password: password.to_owned(),
            registry_socket: String::new(),
        };
        println!("{}", follow(&mut client, request, args.quiet).await?);
    }
    Ok(())
}

/// Follows a pull to its end; the image's id.
pub(super) async fn follow(
    client: &mut Client,
    request: PullRequest,
    quiet: bool,
) -> Result<String, ImagesError> {
    let mut events = client.images.pull(request).await?.into_inner();
    let mut display = Display::new(quiet);
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(progress)) => display.show(&progress),
            Some(Event::Pulled(pulled)) => return Ok(pulled.image_id),
            // Of a newer daemon.
            None => {}
        }
    }
    Err(ImagesError::Cut)
}

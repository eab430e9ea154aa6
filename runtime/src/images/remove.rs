//! `isopod rmi`: take names away, and images with their last one.

use std::path::Path;

use isopod_proto::cri::{ImageSpec, ImageStatusRequest, ListImagesRequest, RemoveImageRequest};

use super::ImagesError;
use crate::client::Client;

/// Options of `isopod rmi`.
#[derive(Debug, clap::Args)]
#[group(required = true)]
pub(crate) struct RemoveArgs {
    /// Names, digests or ids; an id is removed with all of its names
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Every image
    #[arg(short, long)]
    all: bool,
}

/// Removes what can be removed, and says what cannot.
///
/// # Errors
/// The daemon cannot be reached; an image is not there or could not be removed.
pub(crate) async fn remove(args: &RemoveArgs, socket: &Path) -> Result<(), ImagesError> {
    let mut client = Client::connect(socket).await?;
    let names = if args.all {
        let list = client
            .image
            .list_images(ListImagesRequest::default())
            .await?;
        let images = list.into_inner().images.into_iter();
        images.map(|image| image.id).collect()
    } else {
        args.images.clone()
    };
    let mut failed = 0;
    for name in &names {
        match remove_one(&mut client, name).await {
            Ok(true) => println!("Deleted: {name}"),
            Ok(false) => {
                eprintln!("isopod: no such image {name}");
                failed += 1;
            }
            Err(error) => {
                eprintln!("isopod: {name}: {error}");
                failed += 1;
            }
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(ImagesError::Some {
            failed,
            all: names.len(),
        }),
    }
}

/// Whether it was there: the CRI removes what is not without a word.
async fn remove_one(client: &mut Client, name: &str) -> Result<bool, ImagesError> {
    let spec = ImageSpec {
        image: name.to_owned(),
        ..ImageSpec::default()
    };
    let request = ImageStatusRequest {
        image: Some(spec.clone()),
        verbose: false,
    };
    let status = client.image.image_status(request).await?.into_inner();
    if status.image.is_none() {
        return Ok(false);
    }
    let request = RemoveImageRequest { image: Some(spec) };
    client.image.remove_image(request).await?;
    Ok(true)
}

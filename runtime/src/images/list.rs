//! `isopod images`: what is in the store.

use std::io::Write as _;
use std::path::Path;

use isopod_proto::cri::{Image, ImageFilter, ImageSpec, ListImagesRequest};
use serde_json::{Value, json};

use super::ImagesError;
use super::size::human;
use crate::client::Client;
use crate::version::OutputFormat;

/// What stands for a name that is not there, as everywhere.
const NONE: &str = "<none>";

/// Digits of an id that people see: as many as crictl shows.
const SHORT_ID: usize = 13;

/// Options of `isopod images`.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only this image
    image: Option<String>,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Digests too
    #[arg(long)]
    digests: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t, conflicts_with = "quiet")]
    output: OutputFormat,
}

/// Prints the images, one line for each name.
///
/// # Errors
/// The daemon cannot be reached, or refuses.
pub(crate) async fn list(args: &ListArgs, socket: &Path) -> Result<(), ImagesError> {
    let mut client = Client::connect(socket).await?;
    let filter = args.image.clone().map(|image| ImageFilter {
        image: Some(ImageSpec {
            image,
            ..ImageSpec::default()
        }),
    });
    let answer = client
        .image
        .list_images(ListImagesRequest { filter })
        .await?;
    let mut images = answer.into_inner().images;
    images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
    let text = match args.output {
        OutputFormat::Json => format!("{:#}\n", json(&images)),
        OutputFormat::Text if args.quiet => images
            .iter()
            .map(|image| format!("{}\n", id(image, args)))
            .collect(),
        OutputFormat::Text => table(&images, args),
    };
    // Whoever closes the pipe has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn id<'a>(image: &'a Image, args: &ListArgs) -> &'a str {
    match args.no_trunc {
        true => &image.id,
        false => {
            let digits = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
            digits.get(..SHORT_ID).unwrap_or(digits)
        }
    }
}

fn table(images: &[Image], args: &ListArgs) -> String {
    let mut head = vec!["IMAGE", "TAG"];
    if args.digests {
        head.push("DIGEST");
    }
    head.extend(["IMAGE ID", "SIZE"]);
    let mut rows: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    for image in images {
        for (name, tag, digest) in names(image) {
            let mut row = vec![name, tag];
            if args.digests {
                row.push(digest);
            }
            row.extend([id(image, args).to_owned(), human(image.size)]);
            rows.push(row);
        }
    }
    let columns = rows[0].len();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].len());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Repository, tag and digest: for every tag, and for a repository that it is in without one.
fn names(image: &Image) -> Vec<(String, String, String)> {
    let digests: Vec<(&str, &str)> = image
        .repo_digests
        .iter()
        .filter_map(|name| name.split_once('@'))
        .collect();
    let mut rows = Vec::new();
    for tag in &image.repo_tags {
        let (repository, tag) = tag.rsplit_once(':').unwrap_or((tag, NONE));
        let digest = digests.iter().find(|(name, _)| *name == repository);
        let digest = digest.map_or(NONE, |(_, digest)| digest);
        rows.push((repository.to_owned(), tag.to_owned(), digest.to_owned()));
    }
    for (repository, digest) in digests {
        if !rows.iter().any(|(name, ..)| name == repository) {
            rows.push((repository.to_owned(), NONE.to_owned(), digest.to_owned()));
        }
    }
    if rows.is_empty() {
        rows.push((NONE.to_owned(), NONE.to_owned(), NONE.to_owned()));
    }
    rows
}

/// As crictl prints the CRI's answer: 64-bit numbers are strings in protobuf's JSON.
fn json(images: &[Image]) -> Value {
    let images = images.iter().map(|image| {
        json!({
            "id": image.id,
            "repoTags": image.repo_tags,
            "repoDigests": image.repo_digests,
            "size": image.size.to_string(),
            "uid": image.uid.map(|uid| json!({ "value": uid.value.to_string() })),
            "username": image.username,
            "spec": null,
            "pinned": image.pinned,
        })
    });
    json!({ "images": images.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ListArgs {
        ListArgs {
            image: None,
            quiet: false,
            no_trunc: false,
            digests: false,
            output: OutputFormat::Text,
        }
    }

    #[test]
    fn every_tag_has_a_line_and_so_has_a_repository_without_one() {
        let image = Image {
            id: format!("sha256:{}", "ab".repeat(32)),
            repo_tags: vec!["r.test:5000/a:1".into(), "r.test:5000/a:2".into()],
            repo_digests: vec!["r.test:5000/a@sha256:1".into(), "q.test/b@sha256:2".into()],
            size: 4_261_234,
            ..Image::default()
        };
        let text = table(std::slice::from_ref(&image), &args());
        let expected = "\
IMAGE           TAG      IMAGE ID        SIZE
r.test:5000/a   1        ababababababa   4.26MB
r.test:5000/a   2        ababababababa   4.26MB
q.test/b        <none>   ababababababa   4.26MB
";
        assert_eq!(text, expected);
        let digests = ListArgs {
            digests: true,
            ..args()
        };
        assert!(table(&[image], &digests).contains("2        sha256:1   ababababababa"));
    }

    #[test]
    fn no_images_are_a_heading_alone() {
        assert_eq!(table(&[], &args()), "IMAGE   TAG   IMAGE ID   SIZE\n");
        assert_eq!(json(&[]), json!({ "images": [] }));
    }
}

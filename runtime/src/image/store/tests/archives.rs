//! Images out of the store as archives, and back in.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{IMAGE, left_behind, pull, small_image, store, store_for};
use crate::config::RegistryConfig;
use crate::image::testing::Server;
use crate::image::{
    Image, ImageError, ImageStore, Layout, LayoutError, Progress, PullRequest, Served,
};

/// A store in which `image:1` is, and an archive of it.
async fn exported(folder: &Path) -> (TempDir, ImageStore, Image, PathBuf) {
    let site = small_image();
    let server = Server::start(move |asked| site.answer(asked)).await;
    let (root, store) = store_for(&server);
    let image = pull(&store, IMAGE, None).await.expect("an image");
    let archive = folder.join("archive.tar");
    let mut file = File::create(&archive).expect("a file");
    let export = store.export(&[IMAGE.to_owned()]).expect("an export");
    export.write(&mut file).expect("an archive");
    (root, store, image, archive)
}

/// Imports everything in a layout into a new store.
async fn import(
    path: &Path,
    name: Option<&str>,
) -> Result<(TempDir, ImageStore, Vec<Image>), LayoutError> {
    let layout = Layout::open(path)?;
    let images = layout.images(name)?;
    let root = TempDir::new().expect("a directory");
    let socket = root.path().join("socket");
    let served = Served::start(layout, &socket)?;
    let store = store(&root.path().join("images"), &RegistryConfig::default());
    let mut imported = Vec::new();
    for image in images {
        served.offer(&image);
        let request = PullRequest {
            reference: image.name.clone(),
            auth: None,
            registry_socket: Some(socket.clone()),
        };
        let image = store.pull(request, &Progress::default()).await;
        imported.push(image.expect("imported"));
    }
    Ok((root, store, imported))
}

#[tokio::test]
async fn an_exported_image_is_imported_with_its_id_name_and_disk() {
    let folder = TempDir::new().expect("a directory");
    let (_root, first, image, archive) = exported(folder.path()).await;
    let (_root, second, imported) = import(&archive, None).await.expect("imported");
    assert_eq!(imported.len(), 1);
    assert_eq!(imported[0].id, image.id);
    assert_eq!(imported[0].repo_tags, [IMAGE]);
    let contents = |store: &ImageStore| -> Vec<Vec<u8>> {
        let extents = store.disk(&image.id).expect("a disk").extents;
        extents
            .into_iter()
            .map(|mut extent| {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut extent.file, &mut bytes).expect("readable");
                bytes
            })
            .collect()
    };
    assert!(contents(&first) == contents(&second), "the disks differ");

    // What was imported makes the same archive.
    let export = second
        .export(std::slice::from_ref(&image.id))
        .expect("an export");
    let mut again = Vec::new();
    export.write(&mut again).expect("an archive");
    assert!(again == fs::read(&archive).expect("an archive"));
}

#[tokio::test]
async fn archives_are_what_other_tools_read() {
    let folder = TempDir::new().expect("a directory");
    let (_root, _store, image, archive) = exported(folder.path()).await;
    let output = Command::new("skopeo")
        .args(["inspect", "--config", "--raw"])
        .arg(format!("oci-archive:{}:1", archive.display()))
        .output()
        .expect("skopeo");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let digest = crate::image::digest::Digest::of(&output.stdout);
    assert_eq!(digest.to_string(), image.id);
    let copied = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .arg(format!("oci-archive:{}:1", archive.display()))
        .arg(format!("oci:{}:it", folder.path().join("copy").display()))
        .status();
    assert!(copied.expect("skopeo").success());
}

#[tokio::test]
async fn folders_pipes_and_compressed_archives_are_imported_under_the_name_that_is_said() {
    let folder = TempDir::new().expect("a directory");
    let site = small_image();
    let layout = folder.path().join("layout");
    site.write(&layout);
    let tar = |file: &str, compression: &str| {
        let path = folder.path().join(file);
        let made = Command::new("tar")
            .args([compression, "-cf"])
            .arg(&path)
            .args(["-C", layout.to_str().expect("UTF-8"), "."])
            .status();
        assert!(made.expect("tar").success());
        path
    };
    let paths = [
        layout.clone(),
        tar("plain.tar", "--no-auto-compress"),
        tar("small.tar.gz", "--gzip"),
    ];
    for path in paths {
        let (_root, store, imported) = import(&path, Some("me/tool:2")).await.expect("imported");
        assert_eq!(imported[0].id, site.digests.config);
        assert_eq!(imported[0].repo_tags, ["docker.io/me/tool:2"]);
        // The manifest is the one of the layout, byte for byte.
        let digest = format!("docker.io/me/tool@{}", site.digests.manifest);
        assert_eq!(store.find(&digest).expect("found").id, imported[0].id);

        // It is called `it` in there, which is a tag and no name.
        let nameless = import(&path, None).await.err();
        assert!(matches!(nameless, Some(LayoutError::Nameless(_))));
    }
}

#[tokio::test]
async fn what_is_no_layout_is_refused() {
    let folder = TempDir::new().expect("a directory");
    let file = |name: &str, contents: &[u8]| {
        let path = folder.path().join(name);
        let mut file = File::create(&path).expect("a file");
        file.write_all(contents).expect("written");
        path
    };
    assert!(matches!(
        Layout::open(&file("text", &[b'x'; 2000])),
        Err(LayoutError::Archive { .. })
    ));
    assert!(matches!(
        Layout::open(&file("empty", b"")),
        Err(LayoutError::Archive { .. })
    ));
    assert!(matches!(
        Layout::open(&folder.path().join("missing")),
        Err(LayoutError::Read { .. })
    ));
    assert!(matches!(
        Layout::open(folder.path()),
        Err(LayoutError::Read { .. })
    ));
    file("index.json", br#"{"schemaVersion": 1, "manifests": []}"#);
    assert!(matches!(
        Layout::open(folder.path()),
        Err(LayoutError::Index { .. })
    ));
    file("index.json", br#"{"schemaVersion": 2, "manifests": []}"#);
    let empty = Layout::open(folder.path()).expect("a layout");
    assert!(matches!(empty.images(None), Err(LayoutError::Empty)));
}

#[tokio::test]
async fn an_archive_that_lies_is_refused_like_a_registry_that_does() {
    let folder = TempDir::new().expect("a directory");
    let mut site = small_image();
    let layer = site.layer(0).to_owned();
    let blob = site.blobs.get_mut(&layer).expect("a blob");
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
    site.write(folder.path());
    let layout = Layout::open(folder.path()).expect("a layout");
    let image = &layout.images(Some("a.test/b:1")).expect("an image")[0];
    let root = TempDir::new().expect("a directory");
    let socket = root.path().join("socket");
    let served = Served::start(layout, &socket).expect("a server");
    served.offer(image);
    let path = root.path().join("images");
    let store = store(&path, &RegistryConfig::default());
    let request = PullRequest {
        reference: image.name.clone(),
        auth: None,
        registry_socket: Some(socket),
    };
    let error = store.pull(request, &Progress::default()).await;
    let error = error.expect_err("a wrong digest");
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    assert_eq!(left_behind(&path), [""; 0]);
}

#[tokio::test]
async fn a_damaged_layer_is_not_exported_as_if_it_were_whole() {
    let folder = TempDir::new().expect("a directory");
    let (root, store, ..) = exported(folder.path()).await;
    for layer in fs::read_dir(root.path().join("layers")).expect("layers") {
        let data = layer.expect("a layer").path().join("data");
        let mut bytes = fs::read(&data).expect("data");
        bytes[0] ^= 1;
        fs::write(&data, bytes).expect("written");
    }
    let export = store.export(&[IMAGE.to_owned()]).expect("an export");
    let error = export.write(&mut std::io::sink()).expect_err("damaged");
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    let unknown = store.export(&["nothing".to_owned()]).expect_err("unknown");
    assert!(matches!(unknown, ImageError::NotFound { .. }), "{unknown}");
}

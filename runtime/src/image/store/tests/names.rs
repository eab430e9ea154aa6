//! Tags, digests and ids: pulling, finding and removing by each of them.

use std::fs;

use isopod_tests::images::layer::Entry;

use super::{IMAGE, assert_empty, left_behind, pull, small_image, store, store_for};
use crate::image::digest::Digest;
use crate::image::testing::{Reply, Server, Site};

fn other_image() -> Site {
    Site::new(&[&[Entry::directory("etc"), Entry::file("other", "other")]])
}

/// `image:1` and `image:same` are one image, `image:2` is another.
async fn registry() -> (Server, Site, Site) {
    let (one, two) = (small_image(), other_image());
    let (first, second) = (one.clone(), two.clone());
    let server = Server::start(move |asked| {
        let is_second = asked.path.contains("manifests/2");
        let reply = if is_second {
            second.answer(asked)
        } else {
            first.answer(asked)
        };
        let blob = asked
            .path
            .rsplit('/')
            .next()
            .and_then(|name| second.blobs.get(name));
        blob.map_or(reply, |blob| Reply::new(200, blob.clone()))
    })
    .await;
    (server, one, two)
}

#[tokio::test]
async fn an_image_has_its_config_s_digest_for_an_id_and_a_name_of_each_kind() {
    let (server, one, _) = registry().await;
    let (_root, store) = store_for(&server);
    let image = pull(&store, IMAGE, None).await.expect("an image");
    assert_eq!(image.id, one.digests.config);
    assert_eq!(image.repo_tags, [IMAGE]);
    let by_digest = format!("registry.test/image@{}", one.digests.manifest);
    assert_eq!(image.repo_digests, [by_digest.as_str()]);
    assert!(image.size > 3_000_000);
    let id = image.id.strip_prefix("sha256:").expect("a digest");
    for name in [
        IMAGE,
        &by_digest,
        &image.id,
        id,
        &id[..12],
        &format!("{IMAGE}@{}", one.digests.manifest),
    ] {
        assert_eq!(store.find(name).expect(name).id, image.id);
    }
    for name in [
        "registry.test/image:2",
        "registry.test/image",
        "image",
        "",
        "sha256:",
        "zz",
        &Digest::of(b"x").to_string(),
    ] {
        assert!(store.find(name).is_none(), "{name}");
    }
}

#[tokio::test]
async fn an_image_pulled_by_digest_has_no_tag() {
    let (server, one, _) = registry().await;
    let (_root, store) = store_for(&server);
    let name = format!("registry.test/image@{}", one.digests.manifest);
    let image = pull(&store, &name, None).await.expect("an image");
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [name]);
}

#[tokio::test]
async fn pulling_again_asks_for_the_manifest_and_downloads_nothing() {
    let (server, one, _) = registry().await;
    let (_root, store) = store_for(&server);
    pull(&store, IMAGE, None).await.expect("an image");
    pull(&store, "registry.test/image:same", None)
        .await
        .expect("the same image");
    assert_eq!(server.count("/manifests/"), 2);
    assert_eq!(server.count(one.layer(0)), 1);
    let image = &store.list()[..];
    assert_eq!(image.len(), 1);
    assert_eq!(image[0].repo_tags, [IMAGE, "registry.test/image:same"]);
    assert_eq!(image[0].repo_digests.len(), 1);
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_with_its_digest() {
    let (one, two) = (small_image(), other_image());
    let (first, second) = (one.clone(), two.clone());
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&moved);
    let server = Server::start(move |asked| {
        let now = if flag.load(std::sync::atomic::Ordering::SeqCst) {
            &second
        } else {
            &first
        };
        now.answer(asked)
    })
    .await;
    let (_root, store) = store_for(&server);
    let old = pull(&store, IMAGE, None).await.expect("the old image");
    moved.store(true, std::sync::atomic::Ordering::SeqCst);
    let new = pull(&store, IMAGE, None).await.expect("the new image");
    assert_ne!(old.id, new.id);
    assert_eq!(store.find(IMAGE).expect("the tag").id, new.id);
    let old = store.find(&old.id).expect("still there");
    assert!(old.repo_tags.is_empty());
    assert_eq!(old.repo_digests.len(), 1);
}

#[tokio::test]
async fn removing_a_tag_leaves_the_image_until_it_was_the_last() {
    let (server, ..) = registry().await;
    let (root, store) = store_for(&server);
    let image = pull(&store, IMAGE, None).await.expect("an image");
    pull(&store, "registry.test/image:same", None)
        .await
        .expect("the same image");
    store.remove(IMAGE).await.expect("removed");
    assert_eq!(
        store.find(&image.id).expect("there").repo_tags,
        ["registry.test/image:same"]
    );
    store
        .remove(IMAGE)
        .await
        .expect("removing what is not there");
    store
        .remove("registry.test/image:same")
        .await
        .expect("removed");
    assert_empty(&root, &store).await;
}

#[tokio::test]
async fn removing_an_id_removes_every_name_and_shared_layers_stay() {
    let (server, ..) = registry().await;
    let (root, store) = store_for(&server);
    let base = [Entry::directory("etc"), Entry::file("base", "base")];
    let shared = Site::new(&[&base, &[Entry::file("top", "top")]]);
    let alone = Site::new(&[&base]);
    let (first, second) = (shared.clone(), alone.clone());
    let both = Server::start(move |asked| {
        let site = if asked.path.contains("alone") {
            &second
        } else {
            &first
        };
        site.answer(asked)
    })
    .await;
    drop((root, store, server));
    let (root, store) = store_for(&both);
    let one = pull(&store, "registry.test/shared:1", None)
        .await
        .expect("two layers");
    pull(&store, "registry.test/shared:2", None)
        .await
        .expect("another name");
    let two = pull(&store, "registry.test/alone:1", None)
        .await
        .expect("one of them");
    assert_eq!(
        both.count(alone.layer(0)),
        1,
        "a shared layer is downloaded once"
    );
    store.remove(&one.id).await.expect("removed");
    assert_eq!(store.list().len(), 1);
    assert!(store.disk(&two.id).is_ok());
    let left = left_behind(root.path());
    assert_eq!(left.len(), 2, "one layer and one image: {left:?}");
    store
        .remove(&two.id[7..20])
        .await
        .expect("removed by the beginning of its id");
    assert_empty(&root, &store).await;
}

#[tokio::test]
async fn a_disk_that_is_open_outlives_its_image() {
    let (server, ..) = registry().await;
    let (root, store) = store_for(&server);
    let image = pull(&store, IMAGE, None).await.expect("an image");
    let disk = store.disk(&image.id).expect("a disk");
    store.remove(&image.id).await.expect("removed");
    assert_empty(&root, &store).await;
    for extent in &disk.extents {
        let length = extent.file.metadata().expect("an open file").len();
        assert_eq!(length, extent.offset + extent.length);
        assert_eq!(length % 4096, 0);
    }
    assert!(store.disk(&image.id).is_err());
}

#[tokio::test]
async fn a_store_that_is_opened_again_has_everything_and_nothing_else() {
    let (server, ..) = registry().await;
    let (root, first) = store_for(&server);
    let image = pull(&first, IMAGE, None).await.expect("an image");
    let usage = first.usage().expect("usage");
    drop(first);
    // What a crash leaves: an unfinished download, an image without a name, an unused layer.
    for path in [
        "tmp/half/layer",
        &format!("images/{}", "1".repeat(64)),
        &format!("layers/{}", "2".repeat(64)),
    ] {
        fs::create_dir_all(root.path().join(path)).expect("garbage");
    }
    fs::write(
        root.path().join(format!("layers/{}/data", "2".repeat(64))),
        "x",
    )
    .expect("garbage");
    fs::write(
        root.path().join(format!("layers/{}/index", "2".repeat(64))),
        "x",
    )
    .expect("garbage");
    let again = store(root.path(), &super::mirrored(&[server.host()]));
    let found = again.find(IMAGE).expect("still there");
    assert_eq!(
        (&found.id, &found.repo_tags, found.size),
        (&image.id, &image.repo_tags, image.size)
    );
    assert!(again.disk(&image.id).is_ok());
    assert_eq!(again.usage().expect("usage"), usage);
}

#[tokio::test]
async fn an_image_whose_files_are_damaged_is_dropped_and_can_be_pulled_again() {
    let (server, ..) = registry().await;
    let (root, first) = store_for(&server);
    let image = pull(&first, IMAGE, None).await.expect("an image");
    drop(first);
    let directory = root.path().join("images").join(&image.id[7..]);
    fs::write(directory.join("config.json"), "{}").expect("damage");
    let again = store(root.path(), &super::mirrored(&[server.host()]));
    assert_empty(&root, &again).await;
    pull(&again, IMAGE, None).await.expect("pulled again");
}

#[tokio::test]
async fn the_same_image_gives_the_same_bytes() {
    let (server, ..) = registry().await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (root, store) = store_for(&server);
        let image = pull(&store, IMAGE, None).await.expect("an image");
        let metadata = root
            .path()
            .join("images")
            .join(&image.id[7..])
            .join("metadata");
        seen.push(Digest::of(&fs::read(metadata).expect("metadata")));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn one_image_of_two_registries_has_the_names_of_both_and_is_there_once() {
    let site = small_image();
    let server = Server::start(move |asked| site.answer(asked)).await;
    let root = tempfile::TempDir::new().expect("a directory");
    let mut config = super::mirrored(&[server.host()]);
    let endpoints = config.mirrors["registry.test"].clone();
    config.mirrors.insert("other.test".to_owned(), endpoints);
    config.pinned = vec!["other.test/b".to_owned()];
    let store = store(root.path(), &config);
    let first = pull(&store, IMAGE, None).await.expect("an image");
    assert!(!first.pinned);
    let both = pull(&store, "other.test/b", None).await.expect("again");
    assert_eq!(both.id, first.id);
    assert_eq!(both.repo_tags, ["other.test/b:latest", IMAGE]);
    assert_eq!(both.repo_digests.len(), 2);
    assert!(both.pinned, "one of its names is pinned");
    assert_eq!(
        server.count("/blobs/"),
        2 + 2,
        "layers once, the configuration twice"
    );

    store.remove("other.test/b").await.expect("removed");
    let left = store.find(IMAGE).expect("there");
    assert_eq!(left.repo_tags, [IMAGE]);
    assert!(!left.pinned);
}

#[tokio::test]
async fn usage_is_what_the_filesystem_says_and_an_image_s_size_what_its_removal_frees() {
    let (server, ..) = registry().await;
    let (root, store) = store_for(&server);
    let before = store.usage().expect("usage");
    let image = pull(&store, IMAGE, None).await.expect("an image");
    let usage = store.usage().expect("usage");
    let du = std::process::Command::new("du")
        .args(["--summarize", "--block-size=1"])
        .arg(root.path())
        .output()
        .expect("du");
    let du = String::from_utf8(du.stdout).expect("text");
    let bytes: u64 = du
        .split_whitespace()
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    assert_eq!(usage.bytes, bytes);
    store.remove(IMAGE).await.expect("removed");
    let after = store.usage().expect("usage");
    // Beside the image's files there were their folders, and the list of names.
    let folders = 3 * 4096;
    assert_eq!(usage.bytes - after.bytes, image.size + folders);
    assert!(after.bytes <= before.bytes + 4096);
}

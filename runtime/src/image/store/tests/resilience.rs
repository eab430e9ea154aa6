//! Many pulls at once, pulls that are given up, mirrors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{IMAGE, assert_empty, left_behind, mirrored, pull, small_image, store, store_for};
use crate::config::RegistryConfig;
use crate::image::ImageError;
use crate::image::testing::{Reply, Server, Site};

#[tokio::test]
async fn concurrent_pulls_of_an_image_download_its_layers_once() {
    let site = small_image();
    let layer = site.layer(0).to_owned();
    let server = Server::start(move |asked| site.answer(asked)).await;
    let (_root, store) = store_for(&server);
    let pulls = (0..8).map(|_| pull(&store, IMAGE, None));
    for image in futures_util::future::join_all(pulls).await {
        image.expect("an image");
    }
    assert_eq!(server.count(&layer), 1);
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn a_pull_that_is_given_up_leaves_nothing_and_another_one_goes_on() {
    let site = small_image();
    let server = Server::start(move |asked| {
        let reply = site.answer(asked);
        if asked.path.contains("/blobs/") {
            reply.slow(20_000, Duration::from_millis(2))
        } else {
            reply
        }
    })
    .await;
    let (root, store) = store_for(&server);
    let given_up = tokio::time::timeout(Duration::from_millis(60), pull(&store, IMAGE, None)).await;
    assert!(
        given_up.is_err(),
        "the pull was faster than its caller's patience"
    );
    assert_empty(&root, &store).await;

    let (leaving, staying) = tokio::join!(
        tokio::time::timeout(Duration::from_millis(60), pull(&store, IMAGE, None)),
        pull(&store, IMAGE, None),
    );
    assert!(leaving.is_err());
    staying.expect("the one that stays gets its image");
}

/// A registry whose second layer cannot be had until the flag is set: it stalls, for long enough to
/// have the first one, and is not there when it is asked for again.
async fn failing_until(works: &Arc<AtomicBool>) -> (Server, Site) {
    let site = small_image();
    let (answers, works) = (site.clone(), Arc::clone(works));
    let server = Server::start(move |asked| {
        let reply = answers.answer(asked);
        if !asked.path.contains(answers.layer(1)) || works.load(Ordering::SeqCst) {
            reply
        } else if asked.headers.contains_key("range") {
            Reply::new(503, "")
        } else {
            reply.hanging(1)
        }
    })
    .await;
    (server, site)
}

/// The configuration of a store that keeps layers for so long.
fn keeping(server: &Server, keep_layers_ms: u64) -> RegistryConfig {
    RegistryConfig {
        keep_layers_ms,
        ..mirrored(&[server.host()])
    }
}

#[tokio::test]
async fn layers_that_a_failed_pull_finished_are_not_downloaded_again() {
    let works = Arc::default();
    let (server, site) = failing_until(&works).await;
    let root = TempDir::new().expect("a directory");
    let config = keeping(&server, 60_000);
    let store = super::store(root.path(), &config);
    let error = pull(&store, IMAGE, None).await.expect_err("half an image");
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert!(store.list().is_empty());
    assert_eq!(left_behind(root.path()).len(), 1);

    // Nor after the daemon was started again.
    drop(store);
    let store = super::store(root.path(), &config);
    works.store(true, Ordering::SeqCst);
    pull(&store, IMAGE, None).await.expect("the other half");
    assert_eq!(server.count(site.layer(0)), 1);
    // Once they are an image's, they go with it.
    store.remove(IMAGE).await.expect("removed");
    assert_empty(&root, &store).await;
}

#[tokio::test]
async fn layers_that_a_failed_pull_finished_go_after_a_while() {
    let works = Arc::default();
    let (server, _site) = failing_until(&works).await;
    let root = TempDir::new().expect("a directory");
    let config = keeping(&server, 300);
    let store = super::store(root.path(), &config);
    pull(&store, IMAGE, None).await.expect_err("half an image");
    assert_eq!(left_behind(root.path()).len(), 1);
    assert_empty(&root, &store).await;

    pull(&store, IMAGE, None).await.expect_err("half an image");
    drop(store);
    tokio::time::sleep(Duration::from_millis(400)).await;
    let store = super::store(root.path(), &config);
    assert_empty(&root, &store).await;
}

#[tokio::test]
async fn nothing_is_kept_of_an_image_that_is_refused() {
    let site = small_image();
    let server = Server::start(move |asked| {
        if asked.path.contains(site.layer(1)) {
            let longer = [&site.blobs[site.layer(1)], &b"more"[..]].concat();
            Reply::new(200, longer).slow(10, Duration::from_millis(20))
        } else {
            site.answer(asked)
        }
    })
    .await;
    let root = TempDir::new().expect("a directory");
    let store = super::store(root.path(), &keeping(&server, 60_000));
    let error = pull(&store, IMAGE, None).await.expect_err("too long");
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    assert_empty(&root, &store).await;
}

#[tokio::test]
async fn pulling_and_removing_at_once_never_breaks_an_image() {
    let site = small_image();
    let server = Server::start(move |asked| site.answer(asked)).await;
    let (_root, store) = store_for(&server);
    let pulling = async {
        for _ in 0..20 {
            let image = pull(&store, IMAGE, None).await.expect("an image");
            // It may be gone again, but not half.
            match store.disk(&image.id) {
                Ok(disk) => assert_eq!(disk.extents.len(), 3),
                Err(error) => assert!(matches!(error, ImageError::NotFound { .. }), "{error}"),
            }
        }
    };
    let removing = async {
        for _ in 0..100 {
            store.remove(IMAGE).await.expect("removed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::join!(pulling, removing);
}

#[tokio::test]
async fn mirrors_are_asked_in_order_until_one_has_the_image() {
    let site = small_image();
    let broken = Server::start(|_| Reply::new(500, "")).await;
    let empty = Server::start(|_| Reply::new(404, "")).await;
    let full = Server::start(move |asked| site.answer(asked)).await;
    let root = TempDir::new().expect("a directory");
    let hosts = [broken.host(), empty.host(), full.host()];
    let store = store(root.path(), &mirrored(&hosts));
    let image = pull(&store, IMAGE, None)
        .await
        .expect("the third one has it");
    assert_eq!(image.repo_tags, [IMAGE]);
    assert!(
        full.asked()
            .iter()
            .all(|asked| asked.path.ends_with("?ns=registry.test"))
    );
    // Who has answered is asked first from then on.
    assert_eq!(empty.asked().len(), 1);
    assert_eq!(full.count("/blobs/"), 3);
}

#[tokio::test]
async fn a_mirror_that_dies_in_the_middle_of_a_layer_is_replaced_by_the_next() {
    let site = small_image();
    let (first, second) = (site.clone(), site);
    let dying = Server::start(move |asked| {
        if asked.path.contains(first.layer(0)) {
            first
                .answer(asked)
                .breaking(if asked.headers.contains_key("range") {
                    0
                } else {
                    100_000
                })
        } else {
            first.answer(asked)
        }
    })
    .await;
    let living = Server::start(move |asked| second.answer(asked)).await;
    let root = TempDir::new().expect("a directory");
    let store = store(root.path(), &mirrored(&[dying.host(), living.host()]));
    pull(&store, IMAGE, None)
        .await
        .expect("the second one has the rest");
    assert!(
        living
            .asked()
            .iter()
            .any(|asked| asked.headers.contains_key("range"))
    );
}

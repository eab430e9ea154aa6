//! Registries that lie, break, stall or drown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use isopod_tests::images::layer::Entry;
use serde_json::{Value, json};

use super::{IMAGE, assert_empty, fails, pull, small_image, store, store_for};
use crate::image::ImageError;
use crate::image::digest::Digest;
use crate::image::testing::{Reply, Server, Site};

/// The image, but its manifest edited.
fn with_manifest(site: Site, edit: impl Fn(&mut Value) + Send + Sync + 'static) -> Site {
    let mut site = site;
    let old = &site.blobs[&site.digests.manifest];
    let mut manifest: Value = serde_json::from_slice(old).expect("a manifest");
    edit(&mut manifest);
    let text = manifest.to_string().into_bytes();
    site.digests.manifest = Digest::of(&text).to_string();
    site.blobs.insert(site.digests.manifest.clone(), text);
    site
}

/// The image, but its configuration edited, and the manifest made to fit.
fn with_config(site: Site, edit: impl Fn(&mut Value)) -> Site {
    let mut site = site;
    let mut config: Value =
        serde_json::from_slice(&site.blobs[&site.digests.config]).expect("a configuration");
    edit(&mut config);
    let text = config.to_string().into_bytes();
    let digest = Digest::of(&text).to_string();
    site.blobs.insert(digest.clone(), text);
    with_manifest(site, move |manifest| {
        manifest["config"]["digest"] = json!(digest)
    })
}

async fn honest(site: Site) -> Server {
    Server::start(move |asked| site.answer(asked)).await
}

/// The honest answer to everything but the first layer's blob.
async fn with_layer(reply: impl Fn(&[u8]) -> Reply + Send + Sync + 'static) -> Server {
    let site = small_image();
    Server::start(move |asked| {
        if asked.path.contains(site.layer(0)) {
            reply(&site.blobs[site.layer(0)])
        } else {
            site.answer(asked)
        }
    })
    .await
}

#[tokio::test]
async fn a_changed_byte_in_a_layer_is_data_loss_that_names_the_layer() {
    let server = with_layer(|blob| {
        let mut blob = blob.to_vec();
        let middle = blob.len() / 2;
        blob[middle] ^= 1;
        Reply::new(200, blob)
    })
    .await;
    let error = fails(&server).await;
    let layer = small_image().layer(0).to_owned();
    assert!(error.to_string().contains(&layer), "{error}");
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_layer_that_is_longer_than_its_descriptor_is_data_loss() {
    let server = with_layer(|blob| Reply::new(200, [blob, b"more"].concat())).await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_layer_that_is_always_too_short_is_unavailable() {
    // Not data loss: it is tried again, and another endpoint may have all of it.
    let server = with_layer(|blob| Reply::new(200, &blob[..blob.len() / 2])).await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert_eq!(server.count(small_image().layer(0)), 3);
}

#[tokio::test]
async fn a_layer_that_stalls_is_given_up() {
    let server = with_layer(|blob| Reply::new(200, blob).hanging(1000)).await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_layer_that_never_ends_is_cut_off_at_its_size() {
    let server = with_layer(|_| Reply::new(200, vec![0; 1 << 16]).endless()).await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_layer_that_does_not_have_its_diff_id_is_data_loss() {
    let site = with_config(small_image(), |config| {
        config["rootfs"]["diff_ids"][1] = json!(Digest::of(b"something else"));
    });
    let error = fails(&honest(site).await).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("diff id"), "{error}");
}

#[tokio::test]
async fn a_registry_that_serves_another_manifest_than_the_digest_names_is_data_loss() {
    let site = small_image();
    let name = format!("registry.test/image@{}", Digest::of(b"the one"));
    let server = Server::start(move |asked| {
        let manifest = site.blobs[&site.digests.manifest].clone();
        if asked.path.contains("/manifests/") {
            Reply::new(200, manifest)
        } else {
            site.answer(asked)
        }
    })
    .await;
    let (root, store) = store_for(&server);
    let error = pull(&store, &name, None)
        .await
        .expect_err("another manifest");
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    assert_empty(&root, &store).await;
}

#[tokio::test]
async fn a_changed_configuration_is_data_loss() {
    let site = small_image();
    let server = Server::start(move |asked| {
        if asked.path.contains(&site.digests.config) {
            Reply::new(200, "{}")
        } else {
            site.answer(asked)
        }
    })
    .await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn documents_without_end_are_cut_off() {
    for part in ["/manifests/", "/blobs/"] {
        let site = small_image();
        let server = Server::start(move |asked| {
            if asked.path.contains(part) {
                Reply::new(200, vec![b' '; 1 << 16]).endless()
            } else {
                site.answer(asked)
            }
        })
        .await;
        let error = fails(&server).await;
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    }
}

#[tokio::test]
async fn manifests_that_are_no_image_s_are_refused() {
    let edits: [fn(&mut Value); 10] = [
        |manifest| manifest["schemaVersion"] = json!(1),
        |manifest| manifest["mediaType"] = json!("text/html"),
        |manifest| manifest["manifests"] = json!([]),
        |manifest| {
            manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")
        },
        |manifest| manifest["config"]["digest"] = json!("sha256:../../../../etc/passwd"),
        |manifest| {
            manifest["layers"][0]["mediaType"] =
                json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
        },
        |manifest| manifest["layers"][0]["mediaType"] = json!("application/x-7z"),
        |manifest| manifest["layers"] = json!([]),
        |manifest| manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 128]),
        |manifest| *manifest = json!(["not", "an", "object"]),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let error = fails(&honest(with_manifest(small_image(), edit)).await).await;
        assert!(
            matches!(error, ImageError::Refused { .. }),
            "edit {number}: {error}"
        );
    }
}

#[tokio::test]
async fn images_for_other_machines_are_not_found() {
    let site = with_config(small_image(), |config| {
        config["architecture"] = json!("arm64")
    });
    let error = fails(&honest(site).await).await;
    assert!(matches!(error, ImageError::NoPlatform { .. }), "{error}");
}

#[tokio::test]
async fn an_index_that_contains_itself_ends() {
    // Its digest cannot be in it, so the registry lies about that; what ends it is the digest, and
    // were that right, the nesting's limit.
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": Digest::of(b"itself"),
            "size": 1,
            "platform": { "os": "linux", "architecture": "amd64" },
        }],
    })
    .to_string();
    let server = Server::start(move |_| Reply::new(200, index.clone())).await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn redirects_in_circles_are_unavailable_and_not_repeated_for_ever() {
    let server =
        Server::start(|asked| Reply::new(307, "").header("Location", format!("{}0", asked.path)))
            .await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert!(server.asked().len() < 20);
}

#[tokio::test]
async fn a_missing_tag_is_not_found_and_asked_for_once() {
    let server = Server::start(|_| Reply::new(404, "")).await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::NotInRegistry { .. }), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_failing_registry_is_asked_again_and_then_unavailable() {
    let server = Server::start(|_| Reply::new(503, "")).await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable() {
    let gone = honest(small_image()).await;
    let host = gone.host();
    drop(gone);
    let root = tempfile::TempDir::new().expect("a directory");
    let store = store(root.path(), &super::mirrored(std::slice::from_ref(&host)));
    // The mirror is tried first, then the registry itself, whose name does not resolve.
    let error = pull(&store, IMAGE, None).await.expect_err("nobody there");
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("registry.test"), "{error}");
    assert_empty(&root, &store).await;
}

#[tokio::test]
async fn a_layer_over_the_limit_is_too_large() {
    let bomb = Site::with(1, |_, layer| {
        let entry = Entry::file("zeros", []);
        layer
            .add_from(
                &entry,
                5 << 20,
                std::io::Read::take(std::io::repeat(0), 5 << 20),
            )
            .expect("zeros");
    });
    let server = honest(bomb).await;
    let root = tempfile::TempDir::new().expect("a directory");
    let mut config = super::mirrored(&[server.host()]);
    config.max_layer_mib = 4;
    let store = store(root.path(), &config);
    let error = pull(&store, IMAGE, None).await.expect_err("a bomb");
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("max_layer_mib"), "{error}");
    assert_empty(&root, &store).await;
}

#[tokio::test]
async fn layers_with_impossible_entries_are_refused_by_name() {
    for (entry, part) in [
        (Entry::hard_link("link", "nowhere"), "does not exist"),
        (Entry::hard_link("link", "etc"), "directory"),
        (Entry::file("etc/issue/below", "x"), "not a directory"),
    ] {
        let site = Site::new(&[
            &[Entry::directory("etc"), Entry::file("etc/issue", "x")],
            &[entry],
        ]);
        let error = fails(&honest(site).await).await;
        assert!(matches!(error, ImageError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_resumed_where_it_broke() {
    let site = small_image();
    let breaks = Arc::new(AtomicUsize::new(0));
    let (count, layer) = (Arc::clone(&breaks), site.layer(0).to_owned());
    let server = Server::start(move |asked| {
        let reply = site.answer(asked);
        let breaking =
            asked.path.contains(site.layer(0)) && count.fetch_add(1, Ordering::SeqCst) < 2;
        if breaking {
            reply.breaking(100_000)
        } else {
            reply
        }
    })
    .await;
    let (_root, store) = store_for(&server);
    pull(&store, IMAGE, None).await.expect("resumed");
    let ranges: Vec<_> = server
        .asked()
        .iter()
        .filter(|asked| asked.path.contains(&layer))
        .map(|asked| asked.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges.len(), 3);
    assert_eq!(ranges[0], None);
    assert!(
        ranges[1].is_some() && ranges[2].is_some() && ranges[1] != ranges[2],
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_registry_without_ranges_is_read_from_the_beginning_again() {
    let site = small_image();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |asked| {
        if asked.path.contains(site.layer(0)) {
            let reply = Reply::new(200, site.blobs[site.layer(0)].clone());
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            if first {
                reply.breaking(100_000)
            } else {
                reply
            }
        } else {
            site.answer(asked)
        }
    })
    .await;
    let (_root, store) = store_for(&server);
    pull(&store, IMAGE, None).await.expect("read again");
}

#[tokio::test]
async fn other_bytes_the_second_time_are_data_loss() {
    let site = small_image();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |asked| {
        let reply = site.answer(asked);
        if !asked.path.contains(site.layer(0)) {
            return reply;
        }
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            return reply.breaking(100_000);
        }
        let length = site.blobs[site.layer(0)].len();
        Reply::new(206, vec![7; length - 100_000]).header(
            "Content-Range",
            format!("bytes 100000-{}/{length}", length - 1),
        )
    })
    .await;
    let error = fails(&server).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_slow_registry_is_waited_for() {
    let site = small_image();
    let server = Server::start(move |asked| {
        let reply = site.answer(asked);
        if asked.path.contains("/manifests/") {
            reply.slow(100, Duration::from_millis(20))
        } else {
            reply
        }
    })
    .await;
    let (_root, store) = store_for(&server);
    pull(&store, IMAGE, None).await.expect("slow is not broken");
}

#[tokio::test]
async fn as_many_layers_as_overlayfs_allows_are_one_disk() {
    let layers: Vec<Vec<Entry>> = (0..127)
        .map(|number| {
            vec![
                Entry::file(format!("own-{number}"), format!("{number}")),
                Entry::file("same", format!("{number}")),
            ]
        })
        .collect();
    let layers: Vec<&[Entry]> = layers.iter().map(Vec::as_slice).collect();
    let server = honest(Site::new(&layers)).await;
    let (_root, store) = store_for(&server);
    let image = pull(&store, IMAGE, None).await.expect("127 layers");
    assert_eq!(store.disk(&image.id).expect("a disk").extents.len(), 128);

    let mut more = layers;
    let last = [Entry::directory("one-more")];
    more.push(&last);
    let error = fails(&honest(Site::new(&more)).await).await;
    assert!(error.to_string().contains("127 layers"), "{error}");
}

#[tokio::test]
async fn a_configuration_with_a_million_variables_is_too_large() {
    let site = with_config(small_image(), |config| {
        let variables: Vec<String> = (0..1_000_000)
            .map(|number| format!("V{number}=x"))
            .collect();
        config["config"]["Env"] = json!(variables);
    });
    let error = fails(&honest(site).await).await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

//! Many pulls at once, pulls that are given up, mirrors, credentials.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

use super::{IMAGE, assert_empty, mirrored, small_image, store, store_for};
use crate::image::testing::{Reply, Server};
use crate::image::{Credentials, ImageError, Secret};

#[tokio::test]
async fn concurrent_pulls_of_an_image_download_its_layers_once() {
    let site = small_image();
    let layer = site.layer(0).to_owned();
    let server = Server::start(move |asked| site.answer(asked)).await;
    let (_root, store) = store_for(&server);
    let pulls = (0..8).map(|_| store.pull(IMAGE, None));
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
    let given_up = tokio::time::timeout(Duration::from_millis(60), store.pull(IMAGE, None)).await;
    assert!(
        given_up.is_err(),
        "the pull was faster than its caller's patience"
    );
    assert_empty(&root, &store).await;

    let (leaving, staying) = tokio::join!(
        tokio::time::timeout(Duration::from_millis(60), store.pull(IMAGE, None)),
        store.pull(IMAGE, None),
    );
    assert!(leaving.is_err());
    staying.expect("the one that stays gets its image");
}

#[tokio::test]
async fn pulling_and_removing_at_once_never_breaks_an_image() {
    let site = small_image();
    let server = Server::start(move |asked| site.answer(asked)).await;
    let (_root, store) = store_for(&server);
    let pulling = async {
        for _ in 0..20 {
            let image = store.pull(IMAGE, None).await.expect("an image");
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
    let image = store.pull(IMAGE, None).await.expect("the third one has it");
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
    store
        .pull(IMAGE, None)
        .await
        .expect("the second one has the rest");
    assert!(
        living
            .asked()
            .iter()
            .any(|asked| asked.headers.contains_key("range"))
    );
}

fn password(server: Option<&str>) -> Option<Credentials> {
    Some(Credentials {
        secret: Secret::Password {
            username: "me".to_owned(),
            password: "secret".to_owned(),
        },
        server: server.map(str::to_owned),
    })
}

#[tokio::test]
async fn a_registry_with_basic_authentication_gets_the_password_after_it_asked() {
    let site = small_image();
    let server = Server::start(move |asked| {
        let expected = format!("Basic {}", STANDARD.encode("me:secret"));
        if asked.headers.get("authorization") == Some(&expected) {
            site.answer(asked)
        } else {
            Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="registry""#)
        }
    })
    .await;
    let (root, store) = store_for(&server);
    for auth in [None, password(Some("elsewhere.test"))] {
        let error = store.pull(IMAGE, auth).await.expect_err("no password");
        assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    }
    assert!(
        server
            .asked()
            .iter()
            .all(|asked| !asked.headers.contains_key("authorization"))
    );
    assert_empty(&root, &store).await;
    store
        .pull(IMAGE, password(Some(&server.host())))
        .await
        .expect("the right password");
    store
        .pull(IMAGE, password(None))
        .await
        .expect("the right password");
}

#[tokio::test]
async fn a_wrong_password_is_denied_after_one_try() {
    let server = Server::start(|_| {
        Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="registry""#)
    })
    .await;
    let (_root, store) = store_for(&server);
    let error = store
        .pull(IMAGE, password(None))
        .await
        .expect_err("a wrong password");
    assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    assert_eq!(server.asked().len(), 2);
    assert!(!error.to_string().contains("secret"));
}

#[tokio::test]
async fn a_token_server_is_asked_for_this_repository_and_its_token_used() {
    let site = small_image();
    let server = Server::start(move |asked| {
        if asked.path.starts_with("/token") {
            return Reply::new(200, r#"{"token": "opened"}"#);
        }
        match asked.headers.get("authorization").map(String::as_str) {
            Some("Bearer opened") => site.answer(asked),
            _ => Reply::new(401, "").header(
                "WWW-Authenticate",
                format!(
                    r#"Bearer realm="http://{}/token",service="here",scope="repository:image:pull""#,
                    asked.headers["host"]
                ),
            ),
        }
    })
    .await;
    let (_root, store) = store_for(&server);
    store.pull(IMAGE, None).await.expect("anonymously");
    store
        .pull(IMAGE, password(None))
        .await
        .expect("with a password");
    let identity = Credentials {
        secret: Secret::IdentityToken("identity".to_owned()),
        server: None,
    };
    store
        .pull(IMAGE, Some(identity))
        .await
        .expect("with an identity token");
    let tokens: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.path.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 3, "one token for each pull");
    assert_eq!(
        tokens[0].path,
        "/token?scope=repository%3Aimage%3Apull&service=here"
    );
    assert!(!tokens[0].headers.contains_key("authorization"));
    assert!(tokens[1].headers.contains_key("authorization"));
    assert_eq!(tokens[2].method, "POST");
    assert!(tokens[2].body.contains("refresh_token=identity"));
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let site = small_image();
    let server =
        Server::start(
            move |asked| match asked.headers.get("authorization").map(String::as_str) {
                Some("Bearer mine") => site.answer(asked),
                _ => Reply::new(401, "").header("WWW-Authenticate", r#"Bearer realm="http://x/y""#),
            },
        )
        .await;
    let (_root, store) = store_for(&server);
    let token = Credentials {
        secret: Secret::RegistryToken("mine".to_owned()),
        server: None,
    };
    store
        .pull(IMAGE, Some(token))
        .await
        .expect("the right token");
}

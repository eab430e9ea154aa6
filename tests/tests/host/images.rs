//! Images that come, are listed, and go.

use anyhow::{Context as _, Result};
use isopod_proto::cri::{ImageSpec, ListImagesRequest};
use isopod_tests::images::busybox;
use isopod_tests::node::{self, Images, Node, Options, REGISTRY, assert_refused, image};
use isopod_tests::tampered::{Fault, Tampered};
use tonic::Code;

fn from(registry: &Tampered) -> Options {
    Options::host().images(Images::Endpoint(registry.host()))
}

#[test]
fn an_image_is_found_by_tag_digest_and_id_until_it_is_removed() -> Result<()> {
    node::run(Options::host(), |node| {
        let cri = node.cri();
        assert_eq!(cri.image_status(&image("busybox"))?, None);
        let reference = cri.pull(&image("busybox"))?;

        let found = cri
            .image_status(&image("busybox"))?
            .context("not there after the pull")?;
        assert_eq!(found.repo_tags, [image("busybox")]);
        assert_eq!(found.repo_digests.len(), 1);
        let prefix = format!("{REGISTRY}/busybox@sha256:");
        assert!(
            found.repo_digests[0].starts_with(&prefix),
            "{:?}",
            found.repo_digests
        );
        assert!(found.size > 1_000_000, "{} bytes", found.size);
        for name in [reference.as_str(), &found.id, &found.repo_digests[0]] {
            let again = cri
                .image_status(name)?
                .with_context(|| format!("not found as {name}"))?;
            assert_eq!(again.id, found.id);
        }
        assert_eq!(cri.list_images()?, std::slice::from_ref(&found));

        cri.remove_image(&image("busybox"))?;
        assert_eq!(cri.image_status(&found.id)?, None);
        assert_eq!(cri.list_images()?, []);
        Ok(())
    })
}

#[test]
fn removing_an_image_twice_is_ok() -> Result<()> {
    node::run(Options::host(), |node| {
        node.cri().pull(&image("busybox"))?;
        node.cri().remove_image(&image("busybox"))?;
        node.cri().remove_image(&image("busybox"))?;
        Ok(())
    })
}

#[test]
fn an_image_pulled_by_digest_has_no_tag() -> Result<()> {
    let registry = Tampered::busybox(Fault::None)?;
    node::run(from(&registry), |node| {
        let cri = node.cri();
        let name = format!("{REGISTRY}/busybox@{}", registry.image().manifest);
        cri.pull(&name)?;
        let found = cri
            .image_status(&name)?
            .context("not there after the pull")?;
        assert_eq!(found.repo_tags, [""; 0]);
        assert_eq!(found.repo_digests, [name]);
        assert_eq!(found.id, registry.image().config);
        Ok(())
    })
}

#[test]
fn a_second_pull_asks_the_registry_but_downloads_nothing() -> Result<()> {
    let registry = Tampered::busybox(Fault::None)?;
    node::run(from(&registry), |node| {
        let first = node.cri().pull(&image("busybox"))?;
        assert_eq!(registry.layer_requests(), 1);
        assert_eq!(node.cri().pull(&image("busybox"))?, first);
        node.cri().pull(&format!("{REGISTRY}/busybox:other"))?;
        assert_eq!(registry.layer_requests(), 1);

        let found = node.cri().list_images()?;
        assert_eq!(found.len(), 1, "one image under two tags");
        let mut tags = found[0].repo_tags.clone();
        tags.sort();
        assert_eq!(
            tags,
            [image("busybox"), format!("{REGISTRY}/busybox:other")]
        );
        Ok(())
    })
}

#[test]
fn removing_one_of_two_tags_leaves_the_image() -> Result<()> {
    let registry = Tampered::busybox(Fault::None)?;
    node::run(from(&registry), |node| {
        let other = format!("{REGISTRY}/busybox:other");
        node.cri().pull(&image("busybox"))?;
        node.cri().pull(&other)?;
        node.cri().remove_image(&other)?;
        let left = node.cri().list_images()?;
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].repo_tags, [image("busybox")]);
        Ok(())
    })
}

#[test]
fn pulls_of_one_image_at_the_same_time_all_succeed() -> Result<()> {
    let registry = Tampered::busybox(Fault::None)?;
    node::run(from(&registry), |node| {
        let pull = || node.cri().pull(&image("busybox"));
        let pulled = std::thread::scope(|scope| {
            let pulls = [scope.spawn(pull), scope.spawn(pull), scope.spawn(pull)];
            pulls.map(|pull| pull.join().expect("a pull does not panic"))
        });
        for reference in pulled {
            assert_eq!(reference?, registry.image().config);
        }
        assert_eq!(node.cri().list_images()?.len(), 1);
        Ok(())
    })
}

#[test]
fn images_share_their_common_layers_on_disk() -> Result<()> {
    node::run(Options::host(), |node| {
        node.cri().pull(&image("busybox"))?;
        let busybox = used(node)?;
        node.cri().pull(&image("nginx"))?;
        let both = used(node)?;
        node.cri().remove_image(&image("busybox"))?;
        // nginx alone still needs busybox's layer: only a little of metadata has gone.
        let nginx = used(node)?;
        assert!(nginx <= both, "{nginx} > {both}");
        assert!(
            both - nginx < busybox / 2,
            "{both} - {nginx} is not below half of {busybox}"
        );
        Ok(())
    })
}

fn used(node: &Node) -> Result<u64> {
    let info = node.cri().image_fs_info()?;
    let filesystem = info
        .image_filesystems
        .first()
        .context("no image filesystem")?;
    let mountpoint = filesystem
        .fs_id
        .as_ref()
        .context("no fs_id")?
        .mountpoint
        .clone();
    anyhow::ensure!(
        mountpoint.starts_with(&node.root_dir().display().to_string()),
        "{mountpoint}"
    );
    Ok(filesystem.used_bytes.context("no used_bytes")?.value)
}

#[test]
fn images_are_still_there_after_the_daemon_was_killed() -> Result<()> {
    node::run(Options::host(), |node| {
        node.cri().pull(&image("busybox"))?;
        let before = node.cri().list_images()?;
        node.kill_daemon();
        node.start_daemon()?;
        assert_eq!(node.cri().list_images()?, before);
        Ok(())
    })
}

#[test]
fn a_list_can_be_filtered_by_name() -> Result<()> {
    node::run(Options::host(), |node| {
        node.cri().pull(&image("busybox"))?;
        let list = |name: String| {
            let image = ImageSpec {
                image: name,
                ..ImageSpec::default()
            };
            let filter = isopod_proto::cri::ImageFilter { image: Some(image) };
            let request = ListImagesRequest {
                filter: Some(filter),
            };
            node.cri()
                .images(async |mut cri| cri.list_images(request).await)
        };
        assert_eq!(list(image("busybox"))?.images.len(), 1);
        assert_eq!(list(image("nginx"))?.images.len(), 0);
        Ok(())
    })
}

#[test]
fn the_user_of_an_image_is_told_by_number_or_name() -> Result<()> {
    for (user, uid, name) in [
        ("1000", Some(1000), ""),
        ("1000:7", Some(1000), ""),
        ("app", None, "app"),
    ] {
        let mut config = busybox::config(&["/bin/sh"]);
        config["User"] = user.into();
        let registry = Tampered::serve(Fault::None, &config, busybox::base)?;
        node::run(from(&registry), |node| {
            node.cri().pull(&image("busybox"))?;
            let found = node
                .cri()
                .image_status(&image("busybox"))?
                .context("not there")?;
            assert_eq!(found.uid.map(|uid| uid.value), uid, "User {user:?}");
            assert_eq!(found.username, name, "User {user:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn names_that_are_no_references_are_invalid_arguments() -> Result<()> {
    node::run(Options::host().images(Images::None), |node| {
        for name in [
            "",
            "x/UPPER",
            "a//b",
            "registry.test/x:",
            "x@sha256:12",
            "-x",
            "x:y z",
            "../x",
        ] {
            assert_refused(node.cri().pull(name), Code::InvalidArgument, "");
        }
        Ok(())
    })
}

#[test]
fn a_missing_tag_or_repository_is_not_found_and_named() -> Result<()> {
    node::run(Options::host(), |node| {
        for name in [
            format!("{REGISTRY}/busybox:none"),
            format!("{REGISTRY}/none:1"),
        ] {
            assert_refused(node.cri().pull(&name), Code::NotFound, &name);
        }
        Ok(())
    })
}

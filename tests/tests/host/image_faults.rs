//! Registries that lie, break and vanish, and a disk that is full: a clear error, and nothing left.

use std::time::Duration;

use anyhow::Result;
use isopod_tests::node::{self, DataDir, Images, Node, Options, REGISTRY, assert_refused, image};
use isopod_tests::tampered::{Fault, Tampered};
use isopod_tests::wait::{LIMIT, wait_for};
use tonic::Code;

/// The pull fails with this code, and the image is not there afterwards; the leak check at the end
/// finds any byte of it that stayed.
fn pull_fails(fault: Fault, code: Code, message: &str) -> Result<()> {
    let registry = Tampered::busybox(fault)?;
    node::run(
        Options::host().images(Images::Endpoint(registry.host())),
        |node| {
            assert_refused(node.cri().pull(&image("busybox")), code, message);
            assert_eq!(node.cri().list_images()?, []);
            Ok(())
        },
    )
}

#[test]
fn a_layer_with_another_digest_is_data_loss() -> Result<()> {
    pull_fails(Fault::CorruptLayer, Code::DataLoss, "layer")
}

#[test]
fn a_layer_that_always_ends_too_early_makes_the_registry_unavailable() -> Result<()> {
    pull_fails(Fault::TruncatedLayer, Code::Unavailable, "ended after")
}

#[test]
fn a_layer_whose_tar_has_another_digest_is_data_loss() -> Result<()> {
    pull_fails(Fault::WrongDiffId, Code::DataLoss, "layer")
}

#[test]
fn a_configuration_with_another_digest_is_data_loss() -> Result<()> {
    pull_fails(Fault::CorruptConfig, Code::DataLoss, "config")
}

#[test]
fn a_connection_that_always_breaks_makes_the_registry_unavailable() -> Result<()> {
    pull_fails(Fault::BrokenConnection, Code::Unavailable, "127.0.0.1")
}

#[test]
fn a_registry_that_goes_away_in_the_middle_of_a_layer_is_unavailable() -> Result<()> {
    pull_fails(Fault::Gone, Code::Unavailable, "127.0.0.1")
}

#[test]
fn a_registry_that_fails_is_unavailable() -> Result<()> {
    pull_fails(Fault::Failing, Code::Unavailable, "127.0.0.1")
}

#[test]
fn a_registry_that_wants_credentials_denies_permission() -> Result<()> {
    pull_fails(Fault::Unauthorized, Code::PermissionDenied, "127.0.0.1")
}

#[test]
fn a_manifest_that_is_not_json_is_refused() -> Result<()> {
    pull_fails(Fault::BrokenManifest, Code::FailedPrecondition, "manifest")
}

#[test]
fn another_manifest_than_the_digest_names_is_data_loss() -> Result<()> {
    let registry = Tampered::busybox(Fault::OtherManifest)?;
    node::run(
        Options::host().images(Images::Endpoint(registry.host())),
        |node| {
            let name = format!("{REGISTRY}/busybox@{}", registry.image().manifest);
            assert_refused(node.cri().pull(&name), Code::DataLoss, "manifest");
            Ok(())
        },
    )
}

#[test]
fn a_registry_that_is_not_there_is_unavailable_and_named() -> Result<()> {
    let registry = Tampered::busybox(Fault::None)?;
    let host = registry.host();
    drop(registry);
    node::run(Options::host().images(Images::Endpoint(host)), |node| {
        assert_refused(
            node.cri().pull(&image("busybox")),
            Code::Unavailable,
            REGISTRY,
        );
        Ok(())
    })
}

#[test]
fn a_full_disk_while_pulling_exhausts_resources_and_leaves_nothing() -> Result<()> {
    // nginx needs some 10 MB, busybox 2.
    node::run(Options::host().data(DataDir::Small { mib: 6 }), |node| {
        assert_refused(
            node.cri().pull(&image("nginx")),
            Code::ResourceExhausted,
            "no space left",
        );
        assert_eq!(node.cri().list_images()?, []);
        node.cri().pull(&image("busybox"))?;
        Ok(())
    })
}

#[test]
fn a_daemon_that_is_killed_while_pulling_sweeps_up_when_it_starts_again() -> Result<()> {
    let registry = Tampered::busybox(Fault::Stalled)?;
    node::run(
        Options::host().images(Images::Endpoint(registry.host())),
        |node| {
            std::thread::scope(|scope| {
                let pull = scope.spawn(|| node.cri().pull(&image("busybox")));
                wait_for("the layer to be asked for", LIMIT, || requested(&registry))?;
                // Half of the layer arrives and is on disk.
                std::thread::sleep(Duration::from_millis(300));
                node.kill_daemon();
                assert!(pull.join().expect("a pull does not panic").is_err());
                node.start_daemon()
            })?;
            assert_eq!(node.cri().list_images()?, []);
            Ok(())
        },
    )
}

#[test]
fn a_caller_that_goes_away_ends_its_pull() -> Result<()> {
    let registry = Tampered::busybox(Fault::Stalled)?;
    node::run(
        Options::host().images(Images::Endpoint(registry.host())),
        |node| {
            let request = isopod_proto::cri::PullImageRequest {
                image: Some(isopod_proto::cri::ImageSpec {
                    image: image("busybox"),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let answer = node.cri().images(async |mut cri| {
                let mut request = tonic::Request::new(request);
                request.set_timeout(Duration::from_secs(10));
                cri.pull_image(request).await
            });
            assert!(
                requested(&registry).is_some(),
                "the layer was not asked for: {answer:?}"
            );
            assert!(answer.is_err(), "{answer:?}");
            nothing_is_left(node)
        },
    )
}

/// The leak check stops the registry first, which would end a forgotten pull: look before that.
fn nothing_is_left(node: &Node) -> Result<()> {
    wait_for("the pull's files to go away", LIMIT, || {
        let mut found = std::process::Command::new("find");
        let output = found
            .arg(node.root_dir())
            .args(["-type", "f"])
            .output()
            .ok()?;
        output.stdout.is_empty().then_some(())
    })
}

fn requested(registry: &Tampered) -> Option<()> {
    (registry.layer_requests() > 0).then_some(())
}

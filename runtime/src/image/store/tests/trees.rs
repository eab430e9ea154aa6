//! The store against Debian's docker-registry, its disks in the kernel's hands, and their trees
//! against what umoci unpacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use isopod_tests::images::layer::Entry;
use isopod_tests::registry::{Access, Registry};
use tempfile::TempDir;

use super::pull;
use crate::config::{EndpointConfig, RegistryConfig};
use crate::image::ImageStore;
use crate::image::testing::{Mounted, Server, Site, Snapshot, cache, can_mount, snapshot, stack};

/// The registry `docker.io` is, for whoever uses the configuration, the one at `host`.
fn mirrored(host: &str) -> RegistryConfig {
    let mut config = RegistryConfig::default();
    let endpoint = EndpointConfig {
        host: host.to_owned(),
        plain_http: true,
        ..EndpointConfig::default()
    };
    config
        .mirrors
        .insert("docker.io".to_owned(), vec![endpoint.clone()]);
    config.mirrors.insert(host.to_owned(), vec![endpoint]);
    config
}

fn open(root: &TempDir, registry: &Registry) -> ImageStore {
    ImageStore::open(&root.path().join("images"), &mirrored(&registry.host())).expect("a store")
}

fn test_images() -> Registry {
    let storage = isopod_tests::images::build(&cache()).expect("test images");
    Registry::start(&storage, Access::ReadOnly).expect("a registry")
}

/// The same image unpacked by umoci.
fn unpacked(registry: &Registry, image: &str, directory: &Path) -> PathBuf {
    // This umoci knows no zstd, so skopeo compresses everything anew.
    let plain = format!("dir:{}", directory.join("plain").display());
    let layout = directory.join("layout");
    let skopeo = [
        "--insecure-policy",
        "copy",
        "--quiet",
        "--src-tls-verify=false",
    ];
    run(Command::new("skopeo")
        .args(skopeo)
        .arg("--dest-decompress")
        .arg(format!("docker://{}/{image}", registry.host()))
        .arg(&plain));
    run(Command::new("skopeo")
        .args(skopeo)
        .arg(&plain)
        .arg(format!("oci:{}:it", layout.display())));
    unpacked_layout(&layout, directory)
}

fn unpacked_layout(layout: &Path, directory: &Path) -> PathBuf {
    let bundle = directory.join("bundle");
    run(Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:it", layout.display()))
        .arg(&bundle));
    bundle.join("rootfs")
}

fn run(command: &mut Command) {
    let output = command.output().expect("an installed program");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// After every time in the test images, and before the test.
const LATEST_MTIME: i64 = 1_710_000_000;

fn assert_same(ours: &Snapshot, theirs: &Snapshot) {
    let mut differences: Vec<String> = Vec::new();
    for path in ours.keys().chain(theirs.keys()) {
        let (mut ours, mut theirs) = (ours.get(path).cloned(), theirs.get(path).cloned());
        if let (Some(ours), Some(theirs)) = (&mut ours, &mut theirs) {
            // What no archive has a time for, umoci does now: directories that it had to make, and
            // those in which it removed something.
            if theirs.mtime.0 > LATEST_MTIME {
                theirs.mtime = ours.mtime;
            }
            // And it takes an attribute without a value for one that is to be left out.
            ours.xattrs.retain(|_, value| !value.is_empty());
        }
        if ours != theirs {
            differences.push(format!("{}:\n  {ours:?}\n  {theirs:?}", path.display()));
        }
    }
    differences.dedup();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn an_image_pulled_from_a_registry_is_the_tree_that_umoci_unpacks() {
    if !can_mount() {
        return;
    }
    let registry = test_images();
    let root = TempDir::new().expect("a directory");
    let store = open(&root, &registry);
    for name in ["busybox:1", "nginx:1", "layers:1"] {
        let image = pull(&store, &format!("docker.io/{name}"), None).await;
        // The test images are at the top of the registry, not in `library/`.
        assert!(image.is_err());
        let image = pull(&store, &format!("{}/{name}", registry.host()), None).await;
        let image = image.expect(name);
        let disk = store.disk(&image.id).expect("a disk");
        let mounted = Mounted::new(&disk);
        let work = TempDir::new().expect("a directory");
        let theirs = snapshot(&unpacked(&registry, name, work.path()));
        assert_same(&snapshot(&mounted.root()), &theirs);
        assert!(theirs.len() > 2);
        fs::remove_dir_all(work.path()).expect("an unpacked image");
    }
}

#[tokio::test]
async fn random_stacks_of_layers_are_the_trees_that_umoci_unpacks() {
    if !can_mount() {
        return;
    }
    // More of them, for whoever has the time.
    let count = std::env::var("ISOPOD_TEST_STACKS").ok();
    let count = count.map_or(12, |text| text.parse().expect("a number"));
    for seed in 0..count {
        let layers = stack(2 * seed + 0x5eed_0001);
        let site = Site::new(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let work = TempDir::new().expect("a directory");
        let layout = work.path().join("layout");
        site.write(&layout);
        let server = Server::start(move |asked| site.answer(asked)).await;
        let (_root, store) = super::store_for(&server);
        let image = pull(&store, super::IMAGE, None).await.expect("an image");
        let mounted = Mounted::new(&store.disk(&image.id).expect("a disk"));
        let theirs = snapshot(&unpacked_layout(&layout, work.path()));
        eprintln!(
            "seed {seed}: {} layers, {} entries",
            layers.len(),
            theirs.len()
        );
        assert_same(&snapshot(&mounted.root()), &theirs);
    }
}

#[tokio::test]
async fn fsck_finds_nothing_wrong_with_a_disk() {
    let registry = test_images();
    let root = TempDir::new().expect("a directory");
    let store = open(&root, &registry);
    let name = format!("{}/layers:1", registry.host());
    let image = pull(&store, &name, None).await.expect("an image");
    let disk = store.disk(&image.id).expect("a disk");
    // As several devices: Debian's fsck.erofs does not look for them on one disk.
    let path = |extent: &crate::image::DiskExtent| {
        let link = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&extent.file)
        );
        fs::read_link(link).expect("a path")
    };
    let (metadata, blobs) = disk.extents.split_first().expect("metadata");
    let devices = blobs
        .iter()
        .map(|blob| format!("--device={}", path(blob).display()));
    run(Command::new("fsck.erofs")
        .args(devices)
        .arg("--extract")
        .arg(path(metadata)));
}

#[tokio::test]
async fn a_directory_of_many_files_finds_each_of_them() {
    if !can_mount() {
        return;
    }
    let count = std::env::var("ISOPOD_TEST_FILES").ok();
    let count: usize = count.map_or(20_000, |text| text.parse().expect("a number"));
    let site = Site::with(1, |_, layer| {
        // Not in order, and of every length that a name can have.
        for number in 0..count {
            let number = number.wrapping_mul(7919) % count;
            let name = format!("many/{number}-{}", "n".repeat(number % 240));
            layer.add(&Entry::file(name, [])).expect("an entry");
        }
    });
    let server = Server::start(move |asked| site.answer(asked)).await;
    // A server that is busy with that many is no silent one.
    let root = TempDir::new().expect("a directory");
    let mirrors = super::mirrored(&[server.host()]);
    let store = ImageStore::open(root.path(), &mirrors).expect("a store");
    let started = std::time::Instant::now();
    let image = pull(&store, super::IMAGE, None).await.expect("an image");
    eprintln!("{count} files pulled in {:?}", started.elapsed());
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    eprintln!(
        "{:?}",
        status.lines().find(|line| line.starts_with("VmHWM"))
    );
    let mounted = Mounted::new(&store.disk(&image.id).expect("a disk"));
    let directory = mounted.root().join("many");
    assert_eq!(
        fs::read_dir(&directory).expect("a directory").count(),
        count
    );
    for number in 0..count {
        let name = format!("{number}-{}", "n".repeat(number % 240));
        assert!(
            fs::symlink_metadata(directory.join(&name)).is_ok(),
            "{name}"
        );
    }
}

//! The image of everything that is hard about layers, read from inside a container.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use isopod_tests::images::layers::{
    CAPABILITY, MANY, big_file_digest, long_name, long_path, odd_name,
};
use isopod_tests::node::{self, Node, Options, container_config, image, pod_config};

/// Type, mode, owner, number of links and modification time of each file, by path.
type Tree = BTreeMap<Vec<u8>, String>;

const STAT: &str = "find /data -exec stat -c '%F %a %u:%g %h %Y %n' {} +";

fn tree(node: &Node, id: &str) -> Result<Tree> {
    let mut tree = Tree::new();
    for line in node
        .exec(id, STAT)?
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let at = line.windows(6).position(|part| part == b" /data");
        let at = at.with_context(|| String::from_utf8_lossy(line).into_owned())?;
        tree.insert(
            line[at + 2..].to_vec(),
            String::from_utf8(line[..at].to_vec())?,
        );
    }
    Ok(tree)
}

/// Path, and what [`STAT`] says of it.
const WANTED: &[(&str, &str)] = &[
    ("data", "directory 755 0:0 * 1700000000"),
    ("data/plain", "regular file 600 0:0 1 1700000000"),
    ("data/empty", "regular empty file 644 0:0 1 1700000000"),
    ("data/setuid", "regular file 4755 0:0 1 1700000000"),
    ("data/setgid", "regular file 2755 0:0 1 1700000000"),
    ("data/sticky", "directory 1777 0:0 2 1700000000"),
    ("data/owned", "regular file 640 70000:70001 1 1700000000"),
    (
        "data/owned-far",
        "regular file 644 3000000:3000001 1 1700000000",
    ),
    ("data/symlink", "symbolic link 777 0:0 1 1700000000"),
    ("data/dangling", "symbolic link 777 0:0 1 1700000000"),
    ("data/absolute", "symbolic link 777 0:0 1 1700000000"),
    ("data/link-a", "regular file 644 0:0 2 1700000000"),
    ("data/link-b", "regular file 644 0:0 2 1700000000"),
    ("data/null", "character special file 666 0:0 1 1700000000"),
    ("data/block", "block special file 660 0:0 1 1700000000"),
    ("data/fifo", "fifo 644 0:0 1 1700000000"),
    ("data/old", "regular file 644 0:0 1 1"),
    ("data/precise", "regular file 644 0:0 1 1234567890"),
    ("data/future", "regular file 644 0:0 1 4102444800"),
    ("data/added-again", "regular file 644 0:0 1 1700000000"),
    ("data/opaque", "directory 755 0:0 2 1700000000"),
    ("data/opaque/new", "regular file 644 0:0 1 1700000000"),
    ("data/opaque-late", "directory 755 0:0 2 1700000000"),
    ("data/opaque-late/new", "regular file 644 0:0 1 1700000000"),
    ("data/was-dir", "regular file 644 0:0 1 1700000000"),
    ("data/was-file", "directory 755 0:0 2 1700000000"),
    ("data/was-file/inner", "regular file 644 0:0 1 1700000000"),
    ("data/mode-changes", "directory 700 1000:1000 2 1700000000"),
    (
        "data/mode-changes/kept",
        "regular file 644 0:0 1 1700000000",
    ),
    ("data/below", "regular file 644 0:0 2 1700000000"),
    ("data/below-link", "regular file 644 0:0 2 1700000000"),
    ("data/half-b", "regular file 644 0:0 1 1700000000"),
    ("data/capable", "regular file 755 0:0 1 1700000000"),
    ("data/attributes", "regular file 644 0:0 1 1700000000"),
    ("data/attributes-dir", "directory 755 0:0 2 1700000000"),
    ("data/implied", "directory 755 0:0 3 *"),
    ("data/implied/parent", "directory 755 0:0 2 *"),
    (
        "data/implied/parent/file",
        "regular file 644 0:0 1 1700000000",
    ),
    ("data/many", "directory 755 0:0 2 1700000000"),
    ("data/big", "regular file 644 0:0 1 1700000000"),
];

/// Whether what is there is what is wanted, where `*` is anything.
fn fits(have: &str, want: &str) -> bool {
    let (have, want): (Vec<&str>, Vec<&str>) =
        (have.split(' ').collect(), want.split(' ').collect());
    have.len() == want.len()
        && have
            .iter()
            .zip(&want)
            .all(|(have, want)| *want == "*" || have == want)
}

fn check_tree(tree: &Tree) {
    let mut left = tree.clone();
    for (path, want) in WANTED {
        let have = left.remove(path.as_bytes());
        assert!(
            have.as_deref().is_some_and(|have| fits(have, want)),
            "{path}: {have:?}, not {want}"
        );
    }
    for path in [long_name(), long_path(), odd_name()] {
        assert!(
            left.remove(path.as_os_str().as_bytes()).is_some(),
            "{} is missing",
            path.display()
        );
    }
    let long = long_path();
    for directory in long.ancestors().skip(1).take(2) {
        left.remove(directory.as_os_str().as_bytes());
    }
    for number in 0..MANY {
        let path = format!("data/many/file-{number:04}");
        assert!(left.remove(path.as_bytes()).is_some(), "{path} is missing");
    }
    let left: Vec<_> = left
        .keys()
        .map(|path| String::from_utf8_lossy(path))
        .collect();
    assert!(left.is_empty(), "not wanted: {left:?}");
}

/// Path and contents of small files.
const CONTENTS: &[(&str, &str)] = &[
    ("data/plain", "plain, replaced\n"),
    ("data/symlink", "plain, replaced\n"),
    ("data/absolute", "plain, replaced\n"),
    ("data/link-b", "hard\n"),
    ("data/below-link", "linked from above\n"),
    ("data/half-b", "two names, one removed above\n"),
    ("data/added-again", "second\n"),
    ("data/was-dir", "now a file\n"),
    ("data/was-file/inner", "now a directory\n"),
    ("data/mode-changes/kept", "kept\n"),
    ("data/many/file-1499", "1499\n"),
];

fn check_contents(node: &Node, id: &str) -> Result<()> {
    for (path, want) in CONTENTS {
        let have = node.cri().exec(id, &["cat", &format!("/{path}")], 0)?;
        assert_eq!(String::from_utf8_lossy(&have.stdout), *want, "{path}");
    }
    for (path, want) in [(long_name(), "long name\n"), (long_path(), "long path\n")] {
        let path = Path::new("/").join(path);
        let have = node
            .cri()
            .exec(id, &["cat", &path.display().to_string()], 0)?;
        assert_eq!(String::from_utf8_lossy(&have.stdout), want);
    }
    assert_eq!(node.exec(id, "cat /data/odd-*-name")?, b"odd name\n");
    let links = node.exec(
        id,
        "stat -c %i /data/link-a /data/link-b /data/below /data/below-link",
    )?;
    let inodes: Vec<String> = String::from_utf8(links)?
        .lines()
        .map(ToOwned::to_owned)
        .collect();
    assert!(
        inodes[0] == inodes[1] && inodes[2] == inodes[3] && inodes[0] != inodes[2],
        "{inodes:?}"
    );
    let devices = node.exec(
        id,
        "stat -c '%t:%T' /data/null /data/block; readlink /data/dangling",
    )?;
    assert_eq!(
        String::from_utf8_lossy(&devices),
        "1:3\n7:0\nnowhere/at/all\n"
    );
    let precise = String::from_utf8(node.exec(id, "stat -c %y /data/precise")?)?;
    assert!(
        precise.contains("2009-02-13 23:31:30.123456789"),
        "{precise}"
    );
    Ok(())
}

fn check_attributes(node: &Node, id: &str) -> Result<()> {
    let attribute = |path: &str, name: &str| -> Result<Vec<u8>> {
        let read = [
            "getfattr",
            "--absolute-names",
            "--only-values",
            "-n",
            name,
            path,
        ];
        let answer = node.cri().exec(id, &read, 0)?;
        anyhow::ensure!(
            answer.exit_code == 0,
            "{}",
            String::from_utf8_lossy(&answer.stderr)
        );
        Ok(answer.stdout)
    };
    assert_eq!(
        attribute("/data/capable", "security.capability")?,
        CAPABILITY
    );
    assert_eq!(attribute("/data/attributes", "user.isopod")?, b"value");
    assert_eq!(attribute("/data/attributes", "user.empty")?, b"");
    assert_eq!(attribute("/data/attributes", "user.long")?, [b'x'; 1000]);
    assert_eq!(
        attribute("/data/attributes-dir", "user.isopod")?,
        b"directory"
    );
    Ok(())
}

#[test]
fn the_tree_in_the_container_is_the_one_that_the_layers_describe() -> Result<()> {
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("layers"))?;
        let pod = node.cri().run_pod(pod_config(node, "layers"))?;
        let id = node.start(&pod, container_config("c", "layers", &["sleep", "10000"]))?;
        check_all(node, &id)
    })
}

fn check_all(node: &Node, id: &str) -> Result<()> {
    check_tree(&tree(node, id)?);
    check_contents(node, id)?;
    check_attributes(node, id)?;
    let digest = node.exec(id, "sha256sum < /data/big | cut -c 1-64")?;
    assert_eq!(String::from_utf8(digest)?.trim(), big_file_digest());
    Ok(())
}

/// Names of the guest's block devices, but for ones that are always there.
fn disks(node: &Node, id: &str) -> Result<String> {
    let names = node.exec(id, "ls /sys/block | grep -v -e loop -e ram | tr '\\n' ' '")?;
    Ok(String::from_utf8(names)?)
}

#[test]
fn an_image_can_be_memory_that_the_host_shares_and_the_guest_does_not_keep() -> Result<()> {
    node::run(Options::kvm().vm("image_device", "virtio-pmem"), |node| {
        node.cri().pull(&image("layers"))?;
        let pod = node.cri().run_pod(pod_config(node, "memory"))?;
        let sleep = |name| container_config(name, "layers", &["sleep", "10000"]);
        let id = node.start(&pod, sleep("first"))?;
        // The agent is in pmem0; vda is the writable disk.
        assert_eq!(disks(node, &id)?, "pmem0 pmem1 vda ");
        let cached = || -> Result<u64> {
            let text = node.exec(&id, "grep ^Cached /proc/meminfo | tr -dc 0-9")?;
            Ok(String::from_utf8(text)?.parse()?)
        };
        let before = cached()?;
        check_all(node, &id)?;
        // Of the 300 MB that were read, nothing is in the guest's page cache.
        let after = cached()?;
        assert!(after < before + 16 * 1024, "{before} KiB, then {after} KiB");

        // What this container writes goes to its layer, and the next one sees the image.
        let written = node.exec_any(&id, "echo x > /data/plain && cat /data/plain")?;
        assert_eq!(written.stdout, b"x\n", "the layer above is writable");
        let second = node.start(&pod, sleep("second"))?;
        assert_eq!(disks(node, &id)?, "pmem0 pmem1 pmem2 vda ");
        assert_eq!(node.exec(&second, "cat /data/plain")?, b"plain, replaced\n");
        node.cri().remove(&second)?;
        assert_eq!(disks(node, &id)?, "pmem0 pmem1 vda ");
        // What was given back is used again, and what is left still reads.
        let third = node.start(&pod, sleep("third"))?;
        assert_eq!(node.exec(&third, "cat /data/link-b")?, b"hard\n");
        assert_eq!(node.exec(&id, "cat /data/link-b")?, b"hard\n");
        Ok(())
    })
}

#[test]
fn the_tree_can_be_changed_like_any_other() -> Result<()> {
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("layers"))?;
        let pod = node.cri().run_pod(pod_config(node, "change"))?;
        let id = node.start(&pod, container_config("c", "layers", &["sleep", "10000"]))?;
        node.exec(&id, "rm -r /data/many /data/implied; mv /data/plain /data/moved; \
                        echo more >> /data/link-a; chmod 600 /data/setuid; mkdir /data/many; \
                        echo new > /data/many/new; rmdir /data/sticky; ln /data/empty /data/empty-2")?;
        let seen = node.exec(
            &id,
            "cat /data/moved /data/link-a; ls /data/many; stat -c %a /data/setuid",
        )?;
        assert_eq!(
            String::from_utf8_lossy(&seen),
            "plain, replaced\nhard\nmore\nnew\n600\n"
        );
        assert_ne!(
            node.exec_any(&id, "ls -d /data/sticky || ls -d /data/implied")?
                .exit_code,
            0
        );
        // The space of the writable layer is the sandbox's disk, not the guest's memory.
        node.exec(
            &id,
            "head -c 400000000 /dev/zero > /data/large && stat -c %s /data/large | grep 400000000",
        )?;
        Ok(())
    })
}

//! Volumes beside each other, and what may be done in each.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::guest::*;
use crate::virtio::fs::VolumeError;
use crate::virtio::fs::wire::{opcode, valid};

#[test]
fn a_read_only_volume_cannot_be_changed_in_any_way() {
    let guest = Guest::with(false);
    fs::write(guest.path("file"), "x").unwrap();
    let (volume, file) = (guest.volume(), guest.walk("data/file"));
    let attempts = [
        guest.create(volume, "new", 0o600).map(|_| Vec::new()),
        guest.open(file, libc::O_RDWR).map(|_| Vec::new()),
        guest
            .open(file, libc::O_RDONLY | libc::O_TRUNC)
            .map(|_| Vec::new()),
        guest.setattr(file, valid::MODE, |_| {}),
        guest.setattr(file, valid::MTIME | valid::MTIME_NOW, |_| {}),
        guest.call(opcode::MKDIR, volume, args().u64(0o700).raw(b"d\0")),
        guest.call(opcode::UNLINK, volume, args().raw(b"file\0")),
        guest.call(opcode::LINK, volume, args().u64(file).raw(b"second\0")),
        guest.call(
            opcode::RENAME,
            volume,
            args().u64(volume).raw(b"file\0new\0"),
        ),
        guest.call(
            opcode::SETXATTR,
            file,
            args().u32(1).u32(0).raw(b"user.a\0b"),
        ),
        guest.call(opcode::REMOVEXATTR, file, args().raw(b"user.a\0")),
    ];
    for (number, attempt) in attempts.into_iter().enumerate() {
        assert_eq!(attempt.unwrap_err(), Errno::ROFS, "attempt {number}");
    }
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(handle, 0, 10).unwrap(), b"x");
    assert_eq!(guest.write(handle, 0, b"y").unwrap_err(), Errno::BADF);
}

#[test]
fn a_file_is_one_node_through_two_volumes_and_writable_if_one_of_them_is() {
    let guest = Guest::with(false);
    fs::create_dir(guest.path("sub")).unwrap();
    fs::write(guest.path("sub/file"), "x").unwrap();
    fs::write(guest.path("outside"), "x").unwrap();
    let file = guest.walk("data/sub/file");
    assert_eq!(guest.open(file, libc::O_RDWR).unwrap_err(), Errno::ROFS);
    guest
        .server
        .add_volume("sub", open_path(&guest.path("sub")), true)
        .unwrap();
    assert_eq!(guest.walk("sub/file"), file);
    guest.open(file, libc::O_RDWR).unwrap();
    // What only the read-only volume leads to gets no second name in the other one.
    let outside = guest.walk("data/outside");
    let link = args().u64(outside).raw(b"trick\0");
    assert_eq!(
        guest
            .call(opcode::LINK, guest.walk("sub"), link)
            .unwrap_err(),
        Errno::ROFS
    );
}

#[test]
fn nothing_is_moved_from_one_volume_to_another() {
    let guest = Guest::new();
    for name in ["a", "b"] {
        fs::create_dir(guest.path(name)).unwrap();
        let fd = open_path(&guest.path(name));
        guest.server.add_volume(name, fd, true).unwrap();
    }
    guest.server.remove_volume("data");
    fs::write(guest.path("a/file"), "x").unwrap();
    let (a, b) = (guest.walk("a"), guest.walk("b"));
    let rename = args().u64(b).raw(b"file\0file\0");
    assert_eq!(
        guest.call(opcode::RENAME, a, rename).unwrap_err(),
        Errno::XDEV
    );
    let link = args().u64(guest.walk("a/file")).raw(b"file\0");
    assert_eq!(guest.call(opcode::LINK, b, link).unwrap_err(), Errno::XDEV);
}

#[test]
fn a_removed_volume_is_gone_with_everything_open_in_it() {
    let guest = Guest::new();
    let (node, handle) = guest.create(guest.volume(), "file", 0o600).unwrap();
    guest.server.remove_volume("data");
    guest.server.remove_volume("data");
    assert_eq!(guest.lookup(ROOT, "data").unwrap_err(), Errno::NOENT);
    assert_eq!(guest.read(handle, 0, 1).unwrap_err(), Errno::BADF);
    assert_eq!(guest.open(node, libc::O_RDONLY).unwrap_err(), Errno::STALE);
    guest
        .server
        .add_volume("data", open_path(guest.dir.path()), true)
        .unwrap();
    guest.walk("data/file");
}

#[test]
fn a_volume_can_be_a_single_file_and_nothing_but_a_file_or_directory() {
    let guest = Guest::new();
    fs::write(guest.path("hosts"), "127.0.0.1 localhost\n").unwrap();
    let fd = open_path(&guest.path("hosts"));
    guest.server.add_volume("hosts", fd, true).unwrap();
    let handle = guest.open(guest.walk("hosts"), libc::O_RDWR).unwrap();
    assert_eq!(guest.read(handle, 0, 9).unwrap(), b"127.0.0.1");
    guest.write(handle, 0, b"#").unwrap();
    assert!(fs::read(guest.path("hosts")).unwrap().starts_with(b"#27"));
    for (name, path) in [
        ("null", "/dev/null"),
        ("a/b", "/tmp"),
        ("..", "/tmp"),
        ("", "/tmp"),
    ] {
        let refused = guest
            .server
            .add_volume(name, open_path(Path::new(path)), true);
        assert!(matches!(
            refused,
            Err(VolumeError::Kind(_) | VolumeError::Name(_))
        ));
    }
    assert_eq!(guest.server.volumes(), ["data", "hosts"]);
}

#[test]
fn volumes_of_different_file_systems_have_different_inode_numbers() {
    let guest = Guest::new();
    let entry = |name: &str| u64_at(&guest.lookup(ROOT, name).unwrap(), ENTRY_ATTR);
    let data = entry("data");
    let proc = open_path(Path::new("/proc"));
    guest.server.add_volume("proc", proc, false).unwrap();
    assert_eq!(entry("data"), data);
    assert_ne!(entry("proc") >> 48, data >> 48);
}

#[test]
fn a_thread_that_replays_changes_nothing_and_sees_what_it_must() {
    let mut guest = Guest::with(false);
    fs::write(guest.path("there"), "content").unwrap();
    let volume = guest.volume();
    let become_replayer = |guest: &Guest, node: u64, absent: &[u8]| {
        let arguments = args().u32(u32::try_from(absent.len()).unwrap()).u32(0);
        let name = string(isopod_proto::REPLAY_XATTR);
        guest.call(opcode::SETXATTR, node, arguments.raw(&name).raw(absent))
    };
    let unlink =
        |guest: &Guest, name: &str| guest.call(opcode::UNLINK, volume, args().raw(&string(name)));
    assert_eq!(unlink(&guest, "there").unwrap_err(), Errno::ROFS);
    // Only through the root, which no container has.
    become_replayer(&guest, volume, b"").unwrap_err();
    become_replayer(&guest, ROOT, &[b'x'; 2000]).unwrap_err();
    assert_eq!(unlink(&guest, "there").unwrap_err(), Errno::ROFS);

    become_replayer(&guest, ROOT, b"there\0").unwrap();
    assert_eq!(guest.lookup(volume, "there").unwrap_err(), Errno::NOENT);
    let gone = u64_at(&guest.lookup(volume, "gone").unwrap(), 0);
    assert_ne!(gone, 0);
    let attributes = guest
        .call(opcode::GETATTR, gone, args().u64(0).u64(0))
        .unwrap();
    assert_eq!(u32_at(&attributes, 16 + ATTR_MODE), 0o100_000);
    let mknod = args().u32(0o100_644).u64(0).u32(0).raw(&string("there"));
    assert_eq!(
        u64_at(&guest.call(opcode::MKNOD, volume, mknod).unwrap(), 0),
        gone
    );
    let rename = args()
        .u64(volume)
        .raw(&string("gone"))
        .raw(&string("there"));
    guest.call(opcode::RENAME, volume, rename).unwrap();
    unlink(&guest, "gone").unwrap();

    become_replayer(&guest, ROOT, b"").unwrap();
    let there = u64_at(&guest.lookup(volume, "there").unwrap(), 0);
    unlink(&guest, "there").unwrap();
    let size = args().u32(valid::SIZE).u32(0).u64(0).u64(1).raw(&[0; 64]);
    let told = guest.call(opcode::SETATTR, there, size).unwrap();
    assert_eq!(u64_at(&told, 16 + ATTR_SIZE), 7, "what is on the host");
    let handle = guest.open(there, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(guest.write(handle, 0, b"other").unwrap_err(), Errno::BADF);
    assert_eq!(fs::read(guest.path("there")).unwrap(), b"content");

    // Everybody else sees what is there.
    guest.thread = 8;
    become_replayer(&guest, volume, b"").unwrap_err();
    assert_eq!(guest.lookup(volume, "gone").unwrap_err(), Errno::NOENT);
    assert_eq!(unlink(&guest, "there").unwrap_err(), Errno::ROFS);
}

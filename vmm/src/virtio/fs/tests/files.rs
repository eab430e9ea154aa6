//! What a guest does to files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::io::Errno;

use super::guest::*;
use crate::virtio::fs::wire::{opcode, valid};

#[test]
fn a_file_is_made_written_read_and_removed() {
    let guest = Guest::new();
    let (node, handle) = guest.create(guest.volume(), "file", 0o640).unwrap();
    assert_eq!(guest.write(handle, 0, b"hello").unwrap(), 5);
    assert_eq!(guest.write(handle, 7, b"!").unwrap(), 1);
    assert_eq!(guest.read(handle, 1, 100).unwrap(), b"ello\0\0!");
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"hello\0\0!");
    let mode = fs::metadata(guest.path("file")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o640);
    let found = guest.lookup(guest.volume(), "file").unwrap();
    assert_eq!(u64_at(&found, 0), node, "the same file is the same node");
    assert_eq!(u64_at(&found, ENTRY_ATTR + ATTR_SIZE), 8);
    guest
        .call(opcode::UNLINK, guest.volume(), args().raw(b"file\0"))
        .unwrap();
    assert_eq!(
        guest.read(handle, 0, 5).unwrap(),
        b"hello",
        "open after its name is gone"
    );
    let attributes = guest
        .call(opcode::GETATTR, node, args().u64(0).u64(0))
        .unwrap();
    assert_eq!(u32_at(&attributes, 16 + ATTR_NLINK), 0);
    assert_eq!(
        guest.lookup(guest.volume(), "file").unwrap_err(),
        Errno::NOENT
    );
}

#[test]
fn a_new_file_belongs_to_the_user_who_made_it() {
    let mut guest = Guest::new();
    fs::set_permissions(guest.dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    guest.uid = 1234;
    let volume = guest.volume();
    guest.create(volume, "file", 0o600).unwrap();
    guest
        .call(opcode::MKDIR, volume, args().u64(0o700).raw(b"dir\0"))
        .unwrap();
    guest
        .call(opcode::SYMLINK, volume, args().raw(b"link\0nowhere\0"))
        .unwrap();
    guest.uid = 0;
    guest.create(volume, "roots", 0o600).unwrap();
    for (name, owner) in [("file", 1234), ("dir", 1234), ("link", 1234), ("roots", 0)] {
        let stat = fs::symlink_metadata(guest.path(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (owner, owner), "{name}");
    }
    let entry = guest.lookup(volume, "file").unwrap();
    assert_eq!(u32_at(&entry, ENTRY_ATTR + ATTR_UID), 1234);
}

#[test]
fn a_file_open_for_appending_is_appended_to_wherever_the_guest_believes_its_end() {
    let guest = Guest::new();
    fs::write(guest.path("log"), "one\n").unwrap();
    let handle = guest
        .open(guest.walk("data/log"), libc::O_WRONLY | libc::O_APPEND)
        .unwrap();
    guest.write(handle, 0, b"two\n").unwrap();
    assert_eq!(fs::read(guest.path("log")).unwrap(), b"one\ntwo\n");
}

#[test]
fn attributes_are_changed_one_by_one() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "hello").unwrap();
    let node = guest.walk("data/file");
    let put = |at: usize, value: u32| {
        move |bytes: &mut [u8]| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    let changed = guest.setattr(node, valid::MODE, put(68, 0o4755)).unwrap();
    assert_eq!(u32_at(&changed, 16 + ATTR_MODE), 0o10_4755);
    guest
        .setattr(node, valid::SIZE | valid::KILL_SUIDGID, put(16, 2))
        .unwrap();
    guest.setattr(node, valid::UID, put(76, 7)).unwrap();
    guest.setattr(node, valid::GID, put(80, 8)).unwrap();
    guest.setattr(node, valid::MTIME, put(40, 1000)).unwrap();
    let stat = fs::metadata(guest.path("file")).unwrap();
    assert_eq!(
        (stat.len(), stat.uid(), stat.gid(), stat.mtime()),
        (2, 7, 8, 1000)
    );
    assert_eq!(
        stat.mode() & 0o7777,
        0o755,
        "set-user-id went when the file changed"
    );
    let nobody = guest.setattr(node, valid::UID, put(76, u32::MAX));
    assert_eq!(nobody.unwrap_err(), Errno::INVAL);
}

#[test]
fn extended_attributes_are_the_users_and_not_the_hosts() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "").unwrap();
    let node = guest.walk("data/file");
    let set = |name: &[u8]| {
        guest.call(
            opcode::SETXATTR,
            node,
            args().u32(3).u32(0).raw(name).raw(b"\0abc"),
        )
    };
    if set(b"user.key") == Err(Errno::OPNOTSUPP) {
        let dir = guest.dir.path().display();
        return isopod_tests::skip(&format!(
            "the file system of {dir} has no extended attributes"
        ));
    }
    let get = |room: u32| {
        guest.call(
            opcode::GETXATTR,
            node,
            args().u32(room).u32(0).raw(b"user.key\0"),
        )
    };
    assert_eq!(u32_at(&get(0).unwrap(), 0), 3);
    assert_eq!(get(2).unwrap_err(), Errno::RANGE);
    assert_eq!(get(3).unwrap(), b"abc");
    let listed = guest
        .call(opcode::LISTXATTR, node, args().u32(100).u32(0))
        .unwrap();
    assert_eq!(listed, b"user.key\0");
    for name in [
        &b"trusted.overlay.opaque"[..],
        b"security.selinux",
        b"security.ima",
    ] {
        assert_eq!(set(name).unwrap_err(), Errno::OPNOTSUPP);
    }
    guest
        .call(opcode::REMOVEXATTR, node, args().raw(b"user.key\0"))
        .unwrap();
    assert_eq!(get(3).unwrap_err(), Errno::NODATA);
}

#[test]
fn holes_are_made_found_and_copied() {
    let guest = Guest::new();
    let (_, handle) = guest.create(guest.volume(), "file", 0o600).unwrap();
    let (_, copy) = guest.create(guest.volume(), "copy", 0o600).unwrap();
    guest.write(handle, 0, b"data").unwrap();
    let allocate = args().u64(handle).u64(0).u64(8192).u32(0).u32(0);
    guest.call(opcode::FALLOCATE, 0, allocate).unwrap();
    assert_eq!(fs::metadata(guest.path("file")).unwrap().len(), 8192);
    let seek = |whence: i32| {
        let arguments = args().u64(handle).u64(0).u32(whence.cast_unsigned()).u32(0);
        guest
            .call(opcode::LSEEK, 0, arguments)
            .map(|answer| u64_at(&answer, 0))
    };
    assert_eq!(seek(libc::SEEK_DATA).unwrap(), 0);
    assert_eq!(seek(libc::SEEK_SET).unwrap_err(), Errno::INVAL);
    let arguments = args()
        .u64(handle)
        .u64(0)
        .u64(0)
        .u64(copy)
        .u64(2)
        .u64(4)
        .u64(0);
    let copied = guest.call(opcode::COPY_FILE_RANGE, 0, arguments).unwrap();
    assert_eq!(u32_at(&copied, 0), 4);
    assert_eq!(fs::read(guest.path("copy")).unwrap(), b"\0\0data");
}

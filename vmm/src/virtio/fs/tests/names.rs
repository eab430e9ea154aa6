//! Names, links and directories.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::io::Errno;

use super::guest::*;
use crate::virtio::fs::wire::{opcode, valid};

#[test]
fn names_that_lead_out_of_a_directory_are_refused() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "x").unwrap();
    let volume = guest.volume();
    for name in ["..", ".", "", "a/b", "../x", "/etc"] {
        assert_eq!(
            guest.lookup(volume, name).unwrap_err(),
            Errno::INVAL,
            "{name:?}"
        );
        assert_eq!(
            guest.lookup(ROOT, name).unwrap_err(),
            Errno::INVAL,
            "{name:?}"
        );
        assert_eq!(guest.create(volume, name, 0o600).unwrap_err(), Errno::INVAL);
        let mkdir = args().u64(0o700).raw(&string(name));
        assert_eq!(
            guest.call(opcode::MKDIR, volume, mkdir).unwrap_err(),
            Errno::INVAL
        );
        let rename = args().u64(volume).raw(b"file\0").raw(&string(name));
        assert_eq!(
            guest.call(opcode::RENAME, volume, rename).unwrap_err(),
            Errno::INVAL
        );
        let unlink = args().raw(&string(name));
        assert_eq!(
            guest.call(opcode::UNLINK, volume, unlink).unwrap_err(),
            Errno::INVAL
        );
    }
    let long = "x".repeat(256);
    assert_eq!(guest.lookup(volume, &long).unwrap_err(), Errno::NAMETOOLONG);
}

#[test]
fn a_symbolic_link_is_text_and_never_followed() {
    let guest = Guest::new();
    symlink("/etc/passwd", guest.path("link")).unwrap();
    symlink("/etc", guest.path("dir")).unwrap();
    let link = guest.walk("data/link");
    let target = guest.call(opcode::READLINK, link, args()).unwrap();
    assert_eq!(target, b"/etc/passwd");
    assert_eq!(guest.open(link, libc::O_RDONLY).unwrap_err(), Errno::NXIO);
    let below = guest.lookup(guest.walk("data/dir"), "passwd");
    assert_eq!(below.unwrap_err(), Errno::NOTDIR);
    let mode = |bytes: &mut [u8]| bytes[68..72].copy_from_slice(&0o777_u32.to_le_bytes());
    assert_eq!(
        guest.setattr(link, valid::MODE, mode).unwrap_err(),
        Errno::OPNOTSUPP
    );
    assert_eq!(
        guest.setattr(link, valid::SIZE, |_| {}).unwrap_err(),
        Errno::INVAL
    );
}

#[test]
fn a_link_that_replaces_a_name_is_seen_by_the_next_lookup() {
    let guest = Guest::new();
    for version in ["one", "two"] {
        fs::create_dir(guest.path(version)).unwrap();
        fs::write(guest.path(version).join("key"), version).unwrap();
        symlink(version, guest.path("tmp")).unwrap();
        fs::rename(guest.path("tmp"), guest.path("current")).unwrap();
        let link = guest.walk("data/current");
        let target = guest.call(opcode::READLINK, link, args()).unwrap();
        assert_eq!(target, version.as_bytes());
    }
}

#[test]
fn a_device_node_is_refused_and_a_pipe_is_not_opened() {
    let guest = Guest::new();
    let volume = guest.volume();
    let mknod = |mode: u32, rdev: u32, name: &str| {
        let arguments = args().u32(mode).u32(rdev).u64(0).raw(&string(name));
        guest.call(opcode::MKNOD, volume, arguments)
    };
    assert_eq!(
        mknod(libc::S_IFBLK | 0o600, 0x0801, "sda").unwrap_err(),
        Errno::PERM
    );
    assert_eq!(
        mknod(libc::S_IFCHR | 0o600, 0x0103, "null").unwrap_err(),
        Errno::PERM
    );
    mknod(libc::S_IFIFO | 0o600, 0, "pipe").unwrap();
    mknod(libc::S_IFSOCK | 0o600, 0, "socket").unwrap();
    assert_eq!(
        guest
            .open(guest.walk("data/pipe"), libc::O_RDONLY)
            .unwrap_err(),
        Errno::NXIO
    );
    assert_eq!(
        guest.open(volume, libc::O_RDONLY).unwrap_err(),
        Errno::ISDIR
    );
}

#[test]
fn a_directory_is_listed_whole_in_pieces_of_any_size() {
    let guest = Guest::new();
    let mut expected: Vec<String> = (0..200).map(|n| format!("entry-{n}")).collect();
    for name in &expected {
        fs::write(guest.path(name), "").unwrap();
    }
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    for size in [128, 1000, 4096] {
        let mut names = guest.names(guest.volume(), size);
        names.sort();
        assert_eq!(names, expected, "{size}");
    }
    assert_eq!(guest.names(ROOT, 4096), [""; 0]);
}

//! The server and the device as a guest, friendly or not, sees them.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress, VolatileSlice};

use super::wire::{Bytes, opcode, valid};
use super::*;
use crate::virtio::segments::Segments;
use crate::virtio::testing::*;

const ROOT: u64 = 1;
/// Where `struct fuse_attr` is in an answer to LOOKUP, and the fields in it.
const ENTRY_ATTR: usize = 40;
const ATTR_SIZE: usize = 8;
const ATTR_MODE: usize = 60;
const ATTR_NLINK: usize = 64;
const ATTR_UID: usize = 68;

/// A guest's kernel with a server whose volume "data" is a fresh directory.
struct Guest {
    server: Arc<Server>,
    dir: TempDir,
    uid: u32,
    thread: u32,
}

fn open_path(path: &Path) -> OwnedFd {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn args() -> Bytes {
    Bytes::default()
}

impl Guest {
    fn new() -> Self {
        Self::with(true)
    }

    fn with(writable: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Arc::new(Server::new().unwrap());
        server
            .add_volume("data", open_path(dir.path()), writable)
            .unwrap();
        Self {
            server,
            dir,
            uid: 0,
            thread: 7,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// What the server answers, its header taken off.
    fn call_sized(
        &self,
        opcode: u32,
        node: u64,
        arguments: &[u8],
        room: usize,
    ) -> Result<Vec<u8>, Errno> {
        let length = u32::try_from(40 + arguments.len()).unwrap();
        let mut message = args()
            .u32(length)
            .u32(opcode)
            .u64(77)
            .u64(node)
            .u32(self.uid)
            .u32(self.uid)
            .u32(self.thread)
            .u32(0)
            .raw(arguments)
            .0;
        let mut answer = vec![0; 16 + room];
        let mut chain = Chain {
            head: 0,
            readable: Segments::default(),
            writable: Segments::default(),
        };
        chain.readable.push(VolatileSlice::from(&mut message[..]));
        chain.writable.push(VolatileSlice::from(&mut answer[..]));
        let mut request = Request::parse(chain).unwrap();
        let result = self.server.serve(&mut request);
        let written = usize::try_from(request.answer(result)).unwrap();
        if written == 0 {
            return Ok(Vec::new());
        }
        assert_eq!(u32_at(&answer, 0), u32::try_from(written).unwrap());
        assert_eq!(u64_at(&answer, 8), 77);
        match u32_at(&answer, 4).cast_signed() {
            0 => Ok(answer[16..written].to_vec()),
            error => Err(Errno::from_raw_os_error(-error)),
        }
    }

    fn call(&self, opcode: u32, node: u64, Bytes(arguments): Bytes) -> Result<Vec<u8>, Errno> {
        self.call_sized(opcode, node, &arguments, 4096)
    }

    fn lookup(&self, parent: u64, name: &str) -> Result<Vec<u8>, Errno> {
        self.call(opcode::LOOKUP, parent, args().raw(&string(name)))
    }

    /// The node of a path below the root.
    fn walk(&self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |parent, name| {
            u64_at(&self.lookup(parent, name).unwrap(), 0)
        })
    }

    fn volume(&self) -> u64 {
        self.walk("data")
    }

    fn open(&self, node: u64, flags: i32) -> Result<u64, Errno> {
        let arguments = args().u32(flags.cast_unsigned()).u32(0);
        let answer = self.call(opcode::OPEN, node, arguments)?;
        Ok(u64_at(&answer, 0))
    }

    fn create(&self, parent: u64, name: &str, mode: u32) -> Result<(u64, u64), Errno> {
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).cast_unsigned();
        let arguments = args().u32(flags).u32(mode).u64(0).raw(&string(name));
        let answer = self.call(opcode::CREATE, parent, arguments)?;
        Ok((u64_at(&answer, 0), u64_at(&answer, 128)))
    }

    fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let arguments = args()
            .u64(handle)
            .u64(offset)
            .u32(u32::try_from(data.len()).unwrap())
            .u32(0)
            .u64(0)
            .u64(0)
            .raw(data);
        Ok(u32_at(&self.call(opcode::WRITE, 0, arguments)?, 0))
    }

    fn read(&self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let arguments = args().u64(handle).u64(offset).u32(size).raw(&[0; 20]);
        self.call(opcode::READ, 0, arguments)
    }

    fn setattr(
        &self,
        node: u64,
        bits: u32,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<Vec<u8>, Errno> {
        let mut arguments = [0; 88];
        arguments[..4].copy_from_slice(&bits.to_le_bytes());
        change(&mut arguments);
        self.call(opcode::SETATTR, node, args().raw(&arguments))
    }

    fn names(&self, node: u64, size: u32) -> Vec<String> {
        let handle = u64_at(&self.call(opcode::OPENDIR, node, args().u64(0)).unwrap(), 0);
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let arguments = args().u64(handle).u64(offset).u32(size).raw(&[0; 20]);
            let answer = self.call(opcode::READDIR, node, arguments).unwrap();
            if answer.is_empty() {
                self.call(opcode::RELEASEDIR, node, args().u64(handle))
                    .unwrap();
                return names;
            }
            let mut at = 0;
            while at < answer.len() {
                offset = u64_at(&answer, at + 8);
                let length = u32_at(&answer, at + 16) as usize;
                let name = &answer[at + 24..at + 24 + length];
                names.push(String::from_utf8(name.to_vec()).unwrap());
                at += (24 + length).next_multiple_of(8);
            }
        }
    }
}

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

#[test]
fn what_the_guest_forgets_is_closed_and_it_cannot_forget_too_much() {
    let guest = Guest::new();
    fs::write(guest.path("file"), "x").unwrap();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    guest.volume();
    let before = open();
    for _ in 0..3 {
        guest.walk("data/file");
    }
    let (volume, file) = (guest.volume(), guest.walk("data/file"));
    guest.call(opcode::FORGET, file, args().u64(4)).unwrap();
    assert_eq!(guest.open(file, libc::O_RDONLY).unwrap_err(), Errno::STALE);
    let batch = args()
        .u32(3)
        .u32(0)
        .u64(volume)
        .u64(u64::MAX)
        .u64(file)
        .u64(9)
        .u64(99)
        .u64(1);
    guest.call(opcode::BATCH_FORGET, 0, batch).unwrap();
    guest.walk("data/file");
    // Other tests of this process open files, too; a leak would be of every lookup.
    assert!(open() < before + 100);
}

#[test]
fn init_agrees_on_the_version_and_forgets_the_last_life() {
    let guest = Guest::new();
    let (node, _) = guest.create(guest.volume(), "file", 0o600).unwrap();
    let init = |major: u32, minor: u32| {
        guest.call(
            opcode::INIT,
            0,
            args()
                .u32(major)
                .u32(minor)
                .u32(1 << 17)
                .u32(u32::MAX)
                .u32(u32::MAX),
        )
    };
    assert_eq!(init(6, 40).unwrap_err(), Errno::PROTO);
    assert_eq!(init(7, 20).unwrap_err(), Errno::PROTO);
    assert_eq!(u32_at(&init(8, 0).unwrap(), 0), 7);
    let answer = init(7, 41).unwrap();
    assert_eq!(answer.len(), 64);
    assert_eq!(u32_at(&answer, 20), 1 << 20, "the largest write");
    assert_eq!(
        u32_at(&answer, 32),
        1 << 8,
        "ids may be mapped, and nothing else of the second word"
    );
    assert_eq!(guest.open(node, libc::O_RDONLY).unwrap_err(), Errno::STALE);
    guest.walk("data/file");
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

/// A driver of the whole device.
struct Driver {
    memory: vm_memory::GuestMemoryMmap,
    requests: DriverQueue,
    forgets: DriverQueue,
    interrupts: Arc<Interrupts>,
    fs: Fs,
    guest: Guest,
}

fn driver() -> Driver {
    let guest = Guest::new();
    let memory = guest_memory(1 << 20);
    let forgets = DriverQueue::new(&memory, 0, QUEUE_SIZES[0], true);
    let requests = DriverQueue::new(&memory, DriverQueue::LEN, QUEUE_SIZES[1], true);
    let interrupts = Arc::new(Interrupts::default());
    let mut fs = Fs::new(Arc::clone(&guest.server));
    fs.activate(activation(&memory, &[&forgets, &requests], &interrupts))
        .unwrap();
    Driver {
        memory,
        requests,
        forgets,
        interrupts,
        fs,
        guest,
    }
}

const REQUEST: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const ANSWER: u64 = 0x6_0000;

impl Driver {
    fn put_request(&self, opcode: u32, node: u64, arguments: &[u8], data: usize) -> u32 {
        let length = u32::try_from(40 + arguments.len() + data).unwrap();
        let message = args()
            .u32(length)
            .u32(opcode)
            .u64(1)
            .u64(node)
            .raw(&[0; 16]);
        let message = message.raw(arguments).0;
        self.memory
            .write_slice(&message, GuestAddress(REQUEST))
            .unwrap();
        u32::try_from(message.len()).unwrap()
    }
}

#[test]
fn a_write_of_many_pieces_goes_through_the_queue_into_the_file() {
    let mut driver = driver();
    let (node, handle) = driver
        .guest
        .create(driver.guest.volume(), "file", 0o600)
        .unwrap();
    let data: Vec<u8> = (0..100_000_u32)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    driver
        .memory
        .write_slice(&data, GuestAddress(DATA))
        .unwrap();
    let arguments = args().u64(handle).u64(0).u32(100_000).raw(&[0; 20]).0;
    let length = driver.put_request(opcode::WRITE, node, &arguments, data.len());
    let mut buffers = vec![Buffer::readable(REQUEST, length)];
    buffers.extend((0..200).map(|n| Buffer::readable(DATA + n * 500, 500)));
    buffers.push(Buffer::writable(ANSWER, 24));
    driver.requests.add(0, &buffers);
    driver.requests.kick();
    let queue = &mut driver.requests;
    let used = driver.interrupts.wait_for(|| queue.take_used()).unwrap();
    assert_eq!(used, (0, 24));
    assert_eq!(fs::read(driver.guest.path("file")).unwrap(), data);
    assert_eq!(driver.fs.deactivate().len(), 2);
    let file = fs::File::open(driver.guest.path("file")).unwrap();
    file.read_at(&mut [0; 1], 0).unwrap();
}

#[test]
fn a_forget_has_no_answer_and_a_request_without_room_for_one_needs_a_reset() {
    let mut driver = driver();
    let length = driver.put_request(opcode::FORGET, 5, &1_u64.to_le_bytes(), 0);
    driver.forgets.add(0, &[Buffer::readable(REQUEST, length)]);
    driver.forgets.kick();
    let queue = &mut driver.forgets;
    let used = driver.interrupts.wait_for(|| queue.take_used()).unwrap();
    assert_eq!(used, (0, 0));
    let length = driver.put_request(opcode::GETATTR, 1, &[0; 16], 0);
    driver.requests.add(0, &[Buffer::readable(REQUEST, length)]);
    driver.requests.kick();
    let interrupts = &driver.interrupts;
    assert!(
        interrupts
            .wait_for(|| interrupts.reset_is_needed().then_some(()))
            .is_some()
    );
}

#[test]
fn configuration_space_has_the_tag_and_one_queue_of_requests() {
    let fs = Fs::new(Arc::new(Server::new().unwrap()));
    let config = fs.config();
    assert_eq!(config.len(), 40);
    assert!(config.starts_with(b"volumes\0"));
    assert_eq!(u32_at(&config, 36), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Requests of every kind with arguments that may mean something: none panics, and none reaches
    /// beyond the volume.
    #[test]
    fn any_request_is_survived(
        requests in prop::collection::vec(
            (
                // SYNCFS would wait for the disk of the machine that the test runs on.
                (0_u32..55).prop_filter("SYNCFS", |opcode| *opcode != opcode::SYNCFS),
                0_u64..6,
                prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(b'/'), Just(b'.'), any::<u8>()], 0..120),
                prop_oneof![Just(0_usize), Just(128), Just(4096)],
            ),
            1..20,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let guest = Guest::new();
        guest.server.add_volume("a", open_path(&inside), true).unwrap();
        fs::write(inside.join("a"), "x").unwrap();
        guest.walk("a/a");
        for (opcode, node, arguments, room) in requests {
            // Any answer will do.
            let _ = guest.call_sized(opcode, node, &arguments, room);
        }
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        prop_assert_eq!(names, ["inside", "secret"]);
        prop_assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_chain_is_survived((descriptors, heads) in any_chains(0x8000, REQUEST)) {
        let mut driver = driver();
        offer_anything(&mut driver.requests, &descriptors, &heads);
        driver.requests.settle(&driver.interrupts);
        prop_assert_eq!(driver.fs.deactivate().len(), 2);
    }
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

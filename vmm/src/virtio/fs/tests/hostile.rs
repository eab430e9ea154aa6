//! Requests that no kernel sends.

use std::fs;

use proptest::prelude::*;
use rustix::io::Errno;

use super::guest::*;
use crate::virtio::fs::wire::opcode;

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

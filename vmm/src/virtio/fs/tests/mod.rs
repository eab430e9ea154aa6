//! The server and the device as a guest, friendly or not, sees them.

mod device;
mod files;
mod guest;
mod hostile;
mod names;
mod volumes;

use rustix::io::Errno;

use self::guest::*;
use super::wire::opcode;

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

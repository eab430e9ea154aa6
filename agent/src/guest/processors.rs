//! Brings the other processors up.
//!
//! The machine boots on one, which is quicker. The VMM gives it as many as the pod may use, so all
//! of them are wanted once there is a pod to run.

use std::fs;
use std::io;
use std::path::Path;

/// Processors that the kernel knows of (kernel documentation, admin-guide/cputopology).
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// Most processors of a guest (`vmm.proto`).
const PROCESSORS_MAX: u32 = 64;

/// Brings up every processor that is there. Blocks for some milliseconds each.
pub(super) fn bring_up() {
    set_up(PROCESSORS_MAX);
}

/// Brings up the first `count` processors and takes the others down; the first of all is always up.
/// Answers how many are up. Blocks for some milliseconds each.
pub(super) fn set_up(count: u32) -> u32 {
    let mut up = 1;
    for number in 1..PROCESSORS_MAX {
        let wanted = number < count;
        let switch = Path::new(PROCESSORS).join(format!("cpu{number}/online"));
        match fs::write(&switch, if wanted { "1" } else { "0" }) {
            Ok(()) => up += u32::from(wanted),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => {
                tracing::warn!(number, wanted, %error, "a processor stays as it is");
                up += u32::from(!wanted);
            }
        }
    }
    up
}

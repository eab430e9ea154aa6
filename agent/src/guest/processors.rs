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
    for number in 1..PROCESSORS_MAX {
        let switch = Path::new(PROCESSORS).join(format!("cpu{number}/online"));
        match fs::write(&switch, "1") {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => tracing::warn!(number, %error, "a processor does not come up"),
        }
    }
}

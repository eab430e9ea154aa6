//! What the sandbox and its containers have used up, and take now.
//!
//! Read by the verb `Stats` on a blocking thread, from the kernel's own books: cgroups
//! ([`cgroup`]), interfaces ([`interfaces`]) and, because no quota keeps book of it, a walk over each
//! writable layer ([`layer`]), in the background and not often. A file that is not there, because its
//! controller or its container is not, leaves its part of the answer out.
//!
//! The numbers are the guest's: its kernel's, which the pod's own `/proc` shows. What a pod costs the
//! host beyond them, the host sees in its VMM.

mod cgroup;
mod interfaces;
mod layer;
mod open_files;

pub(crate) use cgroup::read as read_cgroup;
pub(crate) use interfaces::read as interfaces;
pub(crate) use layer::LayerUsage;
pub(crate) use open_files::read as open_files;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine booted: a clock that no one sets.
pub(crate) fn since_boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    // Linux has had the clock since 2.6.39.
    u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

//! What a container host's kernel is set to, beyond its defaults.
//!
//! Done when the sandbox is set up: the first answer does not wait for it. Nothing here can fail in
//! a way that matters more than a warning: a kernel without one of the settings does not need it.

use std::fs;
use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::loopback;
use crate::container::CGROUP_MOUNT;

/// What containers inherit. Open files: what images are used to, and the kernel's own cap for one
/// process (`fs.nr_open`). Processes of one user: the kernel derives its default from the guest's
/// small memory; a container's limit is its cgroup's.
const LIMITS: [(Resource, u64); 2] = [
    (Resource::RLIMIT_NOFILE, 1_048_576),
    (Resource::RLIMIT_NPROC, RLIM_INFINITY),
];

/// As the container engines of hosts, and systemd, set them.
const SYSCTLS: [(&str, &str); 10] = [
    // The kubelet checks for these on a host.
    ("vm/overcommit_memory", "1"),
    ("kernel/panic_on_oops", "1"),
    // Unprivileged containers may use low ports and ping: the network is the pod's own.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // Search engines and databases ask for these.
    ("vm/max_map_count", "262144"),
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "524288"),
    // Many short-lived processes should not meet each other's numbers.
    ("kernel/pid_max", "4194304"),
    // Every container makes a session keyring.
    ("kernel/keys/maxkeys", "20000"),
    ("kernel/keys/maxbytes", "400000"),
];

/// For how long what was used stays in memory, in milliseconds; when the guest's memory does not
/// suffice for that, its kernel kills (kernel documentation, multi-gen LRU, "Thrashing prevention").
///
/// Without it the kernel kills once reclaim frees nothing at all, and on a busy host a full guest
/// can go on for minutes freeing a page here and there. A second is what the documentation gives
/// for people who wait; a container whose every page was used within it makes no headway anyway.
const WORKING_SET: (&str, &str) = ("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000");

/// Applies everything.
pub(super) fn apply() {
    if let Err(error) = loopback::up() {
        tracing::warn!(%error, "the loopback interface is down");
    }
    enable_controllers();
    for (name, value) in SYSCTLS {
        // Absent where the kernel was built without it.
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
    let (path, milliseconds) = WORKING_SET;
    if let Err(error) = fs::write(path, milliseconds) {
        tracing::warn!(%error, "a full guest may take long to kill a container");
    }
    for (resource, limit) in LIMITS {
        if let Err(error) = setrlimit(resource, limit, limit) {
            tracing::warn!(?resource, %error, "a limit stays as it was");
        }
    }
}

/// Lets containers' groups have limits (kernel documentation, cgroup-v2, "Enabling and Disabling").
fn enable_controllers() {
    let mount = Path::new(CGROUP_MOUNT);
    let available = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    let all: Vec<String> = available
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    if let Err(error) = fs::write(mount.join("cgroup.subtree_control"), all.join(" ")) {
        tracing::warn!(%error, "containers have no limits");
    }
}

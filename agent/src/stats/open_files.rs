//! What processes have open.

use std::fs;

use isopod_proto::agent::OpenFiles;

use crate::container::Cgroup;

/// Most processes that are looked into, and most descriptors that are counted.
const PROCESSES_MAX: usize = 1024;
const DESCRIPTORS_MAX: u64 = 1 << 16;

/// Descriptors of the processes in a group, and the limit of `init`. Blocking. A process that ends
/// meanwhile is skipped.
pub(crate) fn read(group: &Cgroup, init: i32) -> OpenFiles {
    let mut open = OpenFiles::new();
    for pid in group.pids().unwrap_or_default().iter().take(PROCESSES_MAX) {
        let entries = fs::read_dir(format!("/proc/{pid}/fd"));
        for entry in entries.into_iter().flatten().flatten() {
            if open.descriptors >= DESCRIPTORS_MAX {
                break;
            }
            open.descriptors += 1;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            // proc_pid_fd(5): "socket:[inode]".
            if target
                .as_os_str()
                .as_encoded_bytes()
                .starts_with(b"socket:")
            {
                open.sockets += 1;
            }
        }
    }
    let limits = fs::read_to_string(format!("/proc/{init}/limits")).unwrap_or_default();
    open.soft_limit = soft_limit(&limits);
    open
}

/// `proc_pid_limits(5)`: a name, the soft limit, the hard one and a unit, in columns. 0: none.
fn soft_limit(limits: &str) -> u64 {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_ascii_whitespace().next());
    soft.and_then(|soft| soft.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_limit_is_the_first_of_the_two() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(soft_limit(limits), 1024);
        assert_eq!(soft_limit("Max open files unlimited unlimited files\n"), 0);
        assert_eq!(soft_limit(""), 0);
    }
}

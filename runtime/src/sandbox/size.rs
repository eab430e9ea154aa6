//! How large a pod's guest is.

use isopod_proto::cri::{LinuxContainerResources, LinuxPodSandboxConfig};
use serde::{Deserialize, Serialize};

use crate::config::VmConfig;
use crate::field::FieldError;

/// Most vCPUs of a guest (`vmm.proto`).
const VCPUS_MAX: u32 = 64;
/// Most memory of a guest, MiB: what lies below the VMM's window for devices.
const MEMORY_MAX_MIB: u32 = 255 * 1024;
/// What the guest's kernel and agent need beside the containers' limit, unless the pod's overhead
/// says more.
const GUEST_OVERHEAD_MIB: u32 = 64;
/// What of a pod's overhead is left to the VMM itself, so that the pod's cgroup, which has room for
/// limits and overhead, has room for it beside a guest that uses all of its memory.
const VMM_OVERHEAD_MIB: u32 = 16;

/// A guest's processors and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestSize {
    /// vCPUs that it can bring up.
    pub(crate) max_vcpus: u32,
    /// RAM that it starts with, in MiB.
    pub(crate) memory_mib: u32,
}

impl GuestSize {
    /// What the configuration says, and more when the pod's limits ask for more.
    ///
    /// A pod with a memory limit and an overhead has a cgroup with room for both and no more. Its guest
    /// is made to fit: memory that a guest has touched is the host's to find, whether or not the guest
    /// still uses it, and a guest that is larger would get its VMM killed in time.
    ///
    /// # Errors
    ///
    /// [`FieldError`] for limits that no guest can have.
    pub(super) fn of(
        linux: &LinuxPodSandboxConfig,
        defaults: &VmConfig,
    ) -> Result<Self, FieldError> {
        let mut size = Self {
            max_vcpus: defaults.max_vcpus,
            memory_mib: defaults.memory_mib,
        };
        let Some(limits) = &linux.resources else {
            return Ok(size);
        };
        let wrong = |name: &str, reason: String| {
            let field = format!("config.linux.resources.{name}");
            Err(FieldError::new(field, reason))
        };
        if limits.memory_limit_in_bytes < 0 {
            return wrong("memory_limit_in_bytes", "is negative".to_owned());
        }
        if limits.hugepage_limits.iter().any(|limit| limit.limit > 0) {
            let reason = "asks for huge pages, which a guest does not have".to_owned();
            return wrong("hugepage_limits", reason);
        }
        let limit = mebibytes(limits.memory_limit_in_bytes);
        let overhead = overhead_mib(linux.overhead.as_ref());
        if memory_mib(limit, overhead, 0) > MEMORY_MAX_MIB {
            let reason = format!("and the pod's overhead are more than {MEMORY_MAX_MIB} MiB");
            return wrong("memory_limit_in_bytes", reason);
        }
        let vcpus = vcpus(limits);
        if vcpus > VCPUS_MAX {
            let reason = format!("is more than {VCPUS_MAX} processors can use");
            return wrong("cpu_quota", reason);
        }
        size.max_vcpus = size.max_vcpus.max(vcpus);
        if limit > 0 {
            size.memory_mib = memory_mib(limit, overhead, defaults.memory_mib);
        }
        Ok(size)
    }
}

/// vCPUs that a CPU limit can keep busy; 0 without a limit.
pub(super) fn vcpus(limits: &LinuxContainerResources) -> u32 {
    if limits.cpu_quota <= 0 || limits.cpu_period <= 0 {
        return 0;
    }
    let quota = limits
        .cpu_quota
        .unsigned_abs()
        .div_ceil(limits.cpu_period.unsigned_abs());
    u32::try_from(quota).unwrap_or(u32::MAX)
}

/// Memory of a guest for a limit of what runs in it, and the guest itself; at least `least_mib` for a
/// pod without an overhead (0).
pub(super) fn memory_mib(limit_mib: u32, overhead_mib: u32, least_mib: u32) -> u32 {
    let own = overhead_mib
        .saturating_sub(VMM_OVERHEAD_MIB)
        .max(GUEST_OVERHEAD_MIB);
    match (limit_mib, overhead_mib) {
        (0, _) => 0,
        (limit, 0) => limit.saturating_add(own).max(least_mib),
        (limit, _) => limit.saturating_add(own),
    }
}

/// A pod's overhead in memory; 0 when it says nothing of one.
pub(super) fn overhead_mib(overhead: Option<&LinuxContainerResources>) -> u32 {
    overhead.map_or(0, |overhead| mebibytes(overhead.memory_limit_in_bytes))
}

/// Most memory of a guest that grows; `configured` may leave it to what the host has (0).
pub(super) fn max_memory_mib(configured: u32) -> u32 {
    let most = match configured {
        0 => {
            let host = rustix::system::sysinfo();
            let bytes = host.totalram.saturating_mul(host.mem_unit.into());
            u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
        }
        configured => configured,
    };
    most.min(MEMORY_MAX_MIB)
}

/// Rounded up; 0 for what is negative.
pub(crate) fn mebibytes(bytes: i64) -> u32 {
    let bytes = u64::try_from(bytes).unwrap_or(0);
    u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use isopod_proto::cri::HugepageLimit;

    use super::*;

    fn sized(quota: i64, memory: i64, overhead: i64) -> Result<GuestSize, FieldError> {
        let resources = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: quota,
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        let overhead = LinuxContainerResources {
            memory_limit_in_bytes: overhead,
            ..Default::default()
        };
        let linux = LinuxPodSandboxConfig {
            resources: Some(resources),
            overhead: Some(overhead),
            ..Default::default()
        };
        GuestSize::of(&linux, &VmConfig::default())
    }

    fn size(max_vcpus: u32, memory_mib: u32) -> GuestSize {
        GuestSize {
            max_vcpus,
            memory_mib,
        }
    }

    #[test]
    fn limits_above_the_default_make_the_guest_larger() {
        assert_eq!(sized(350_000, 1 << 30, 0).unwrap(), size(4, 1024 + 64));
        let overhead = 130 << 20;
        assert_eq!(sized(0, 1 << 30, overhead).unwrap(), size(2, 1024 + 114));
    }

    #[test]
    fn limits_with_an_overhead_make_a_guest_that_both_have_room_for() {
        let (limit, overhead) = (96 << 20, 80 << 20);
        assert_eq!(sized(0, limit, overhead).unwrap(), size(2, 96 + 80 - 16));
        assert_eq!(sized(0, limit, 0).unwrap(), size(2, 256));
    }

    #[test]
    fn a_guest_that_grows_has_what_one_would_be_started_with() {
        for (limit, overhead) in [(96, 80), (1024, 0), (64, 0), (500, 20)] {
            let started = sized(0, limit << 20, overhead << 20).unwrap().memory_mib;
            let (limit, overhead) = (mebibytes(limit << 20), mebibytes(overhead << 20));
            assert_eq!(memory_mib(limit, overhead, 256), started);
        }
        assert_eq!(memory_mib(0, 80, 256), 0);
        assert_eq!(max_memory_mib(1000), 1000);
        assert_eq!(max_memory_mib(u32::MAX), MEMORY_MAX_MIB);
        assert!(max_memory_mib(0) > 64, "what this host has");
    }

    #[test]
    fn no_limits_leave_the_default() {
        for quota in [0, -1] {
            assert_eq!(sized(quota, 0, 1 << 30).unwrap(), size(2, 256));
        }
    }

    #[test]
    fn limits_that_no_guest_can_have_are_refused_by_name() {
        let field = |quota, memory| sized(quota, memory, 0).unwrap_err().field;
        let memory = "config.linux.resources.memory_limit_in_bytes";
        assert_eq!(field(0, -1), memory);
        assert_eq!(field(0, i64::MAX), memory);
        assert_eq!(field(i64::MAX, 0), "config.linux.resources.cpu_quota");
        let huge = |limit| {
            let hugepage = HugepageLimit {
                page_size: "2MB".into(),
                limit,
            };
            let linux = LinuxPodSandboxConfig {
                resources: Some(LinuxContainerResources {
                    hugepage_limits: vec![hugepage],
                    ..Default::default()
                }),
                ..Default::default()
            };
            GuestSize::of(&linux, &VmConfig::default())
        };
        huge(0).unwrap();
        let refused = huge(1 << 21).unwrap_err().field;
        assert_eq!(refused, "config.linux.resources.hugepage_limits");
    }
}

//! How large a pod's guest is.

use isopod_proto::cri::{LinuxContainerResources, LinuxPodSandboxConfig};
use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// Most vCPUs of a guest (`vmm.proto`).
const VCPUS_MAX: u32 = 64;
/// Most memory of a guest: what the configuration may ask for, too.
const MEMORY_MAX_MIB: u32 = 1 << 20;
/// What the guest's kernel and agent need beside the containers' limit.
const GUEST_OVERHEAD_MIB: u32 = 64;

/// A guest's processors and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestSize {
    /// vCPUs that it can bring up.
    pub(crate) max_vcpus: u32,
    /// RAM, in MiB.
    pub(crate) memory_mib: u32,
}

impl GuestSize {
    /// What the configuration says, and more when the pod's limits ask for more.
    pub(super) fn of(linux: &LinuxPodSandboxConfig, defaults: &VmConfig) -> Self {
        let mut size = Self {
            max_vcpus: defaults.max_vcpus,
            memory_mib: defaults.memory_mib,
        };
        if let Some(limits) = &linux.resources {
            size.max_vcpus = size.max_vcpus.max(vcpus(limits)).min(VCPUS_MAX);
            size.memory_mib = size.memory_mib.max(memory_mib(limits)).min(MEMORY_MAX_MIB);
        }
        size
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

/// Memory for a memory limit and the guest itself; 0 without a limit.
pub(super) fn memory_mib(limits: &LinuxContainerResources) -> u32 {
    if limits.memory_limit_in_bytes <= 0 {
        return 0;
    }
    let limit = limits
        .memory_limit_in_bytes
        .unsigned_abs()
        .div_ceil(1 << 20);
    u32::try_from(limit)
        .unwrap_or(u32::MAX)
        .saturating_add(GUEST_OVERHEAD_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(quota: i64, memory: i64) -> GuestSize {
        let resources = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: quota,
            memory_limit_in_bytes: memory,
            ..Default::default()
        };
        let linux = LinuxPodSandboxConfig {
            resources: Some(resources),
            ..Default::default()
        };
        GuestSize::of(&linux, &VmConfig::default())
    }

    #[test]
    fn limits_above_the_default_make_the_guest_larger() {
        assert_eq!(
            size(350_000, 1 << 30),
            GuestSize {
                max_vcpus: 4,
                memory_mib: 1024 + 64
            }
        );
    }

    #[test]
    fn no_limits_and_absurd_ones_stay_in_range() {
        assert_eq!(
            size(0, 0),
            GuestSize {
                max_vcpus: 2,
                memory_mib: 256
            }
        );
        assert_eq!(
            size(-1, -1),
            GuestSize {
                max_vcpus: 2,
                memory_mib: 256
            }
        );
        assert_eq!(
            size(i64::MAX, i64::MAX),
            GuestSize {
                max_vcpus: 64,
                memory_mib: 1 << 20
            }
        );
    }
}

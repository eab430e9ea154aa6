//! The spec's `linux` section: namespaces, limits, devices, and what is hidden of /proc and /sys.

use isopod_proto::cri;
use serde_json::{Map, Value, json};

use super::seccomp;
use crate::container::device::{Device, DeviceSource};
use crate::field::FieldError;
use crate::sandbox::UserNamespace;

/// Hidden when the caller gives no list of its own, as in containerd.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Not to be written when the caller gives no list of its own.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Weight of a cgroup v1 CPU share: the range that the kernel had.
const CPU_SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;

/// What the kernel takes for a period and a quota (kernel documentation, cgroup-v2, `cpu.max`).
const CPU_PERIOD_US: std::ops::RangeInclusive<i64> = 1000..=1_000_000;
const CPU_QUOTA_MIN_US: i64 = 1000;

/// What is not the guest's.
#[derive(Debug)]
pub(super) struct Owned {
    /// IPC objects: the container's own.
    pub(super) ipc: bool,
    /// Pids: the container's own.
    pub(super) pids: bool,
    /// Users: the pod's own.
    pub(super) users: Option<UserNamespace>,
}

pub(super) fn linux(
    security: &cri::LinuxContainerSecurityContext,
    resources: &cri::LinuxContainerResources,
    owned: &Owned,
) -> Result<Value, FieldError> {
    let mut linux = json!({
        "namespaces": namespaces(security.privileged, owned),
        "resources": resources_of(resources, security.privileged)?,
        "rootfsPropagation": "private",
    });
    if let Some(users) = owned.users {
        [linux["uidMappings"], linux["gidMappings"]] = users.to_oci();
    }
    if !security.privileged {
        linux["maskedPaths"] = paths("masked_paths", &security.masked_paths, &MASKED)?;
        linux["readonlyPaths"] = paths("readonly_paths", &security.readonly_paths, &READ_ONLY)?;
    }
    if let Some(filter) = seccomp::filter(security)? {
        linux["seccomp"] = filter;
    }
    Ok(linux)
}

fn namespaces(privileged: bool, owned: &Owned) -> Value {
    let users = owned.users.is_some();
    let wanted = [
        ("mount", true),
        // Only who owns it can mount its file system.
        ("cgroup", !privileged || users),
        ("ipc", owned.ipc),
        ("pid", owned.pids),
        ("user", users),
    ];
    let wanted = wanted.into_iter().filter(|(_, wanted)| *wanted);
    wanted.map(|(name, _)| json!({ "type": name })).collect()
}

fn paths(field: &str, asked: &[String], default: &[&str]) -> Result<Value, FieldError> {
    if let Some(wrong) = asked
        .iter()
        .find(|path| !path.starts_with('/') || path.contains('\0'))
    {
        return Err(FieldError::new(
            format!("config.linux.security_context.{field}"),
            format!("names {wrong:?}, which is not an absolute path"),
        ));
    }
    Ok(if asked.is_empty() {
        json!(default)
    } else {
        json!(asked)
    })
}

fn resources_of(
    resources: &cri::LinuxContainerResources,
    privileged: bool,
) -> Result<Value, FieldError> {
    let mut limits = limits(resources)?;
    limits.insert("devices".into(), devices(privileged));
    Ok(limits.into())
}

/// Limits for a control group. 0 means that nothing is said about one, everywhere.
///
/// # Errors
///
/// [`FieldError`] names the first that cannot be honoured.
pub(crate) fn limits(
    resources: &cri::LinuxContainerResources,
) -> Result<Map<String, Value>, FieldError> {
    let mut limits = Map::new();
    check_limits(resources)?;
    let mut cpu = Map::new();
    if resources.cpu_shares > 0 {
        let shares = resources
            .cpu_shares
            .clamp(*CPU_SHARES.start(), *CPU_SHARES.end());
        cpu.insert("shares".into(), shares.into());
    }
    if resources.cpu_quota != 0 {
        cpu.insert("quota".into(), resources.cpu_quota.into());
    }
    if resources.cpu_period > 0 {
        cpu.insert("period".into(), resources.cpu_period.into());
    }
    for (key, list) in [
        ("cpus", &resources.cpuset_cpus),
        ("mems", &resources.cpuset_mems),
    ] {
        if !list.is_empty() {
            // The host's numbers, which mean nothing in the guest: `sandbox::processors`.
            check_cpuset(key, list)?;
        }
    }
    if !cpu.is_empty() {
        limits.insert("cpu".into(), cpu.into());
    }
    let memory = resources.memory_limit_in_bytes;
    if memory > 0 {
        limits.insert("memory".into(), json!({ "limit": memory }));
    }
    if !resources.unified.is_empty() {
        if let Some(wrong) = resources.unified.keys().find(|name| !is_cgroup_file(name)) {
            let reason = format!("names {wrong:?}, which is no file of cgroup v2");
            return Err(FieldError::new("config.linux.resources.unified", reason));
        }
        limits.insert("unified".into(), json!(resources.unified));
    }
    Ok(limits)
}

/// What no control group can be told, or what contradicts itself.
fn check_limits(resources: &cri::LinuxContainerResources) -> Result<(), FieldError> {
    let wrong = |name: &str, reason: &str| {
        let field = format!("config.linux.resources.{name}");
        Err(FieldError::new(field, reason))
    };
    let memory = resources.memory_limit_in_bytes;
    let swap = resources.memory_swap_limit_in_bytes;
    if memory < 0 {
        return wrong("memory_limit_in_bytes", "is negative");
    }
    // A guest has no swap, so any limit of it holds. What counts memory and swap together cannot be
    // less than memory alone.
    if swap < -1 || (swap > 0 && swap < memory) {
        return wrong(
            "memory_swap_limit_in_bytes",
            "is less than the memory limit",
        );
    }
    if resources.cpu_shares < 0 {
        return wrong("cpu_shares", "is negative");
    }
    let period = resources.cpu_period;
    if period != 0 && !CPU_PERIOD_US.contains(&period) {
        return wrong("cpu_period", "is not in 1000 to 1000000 microseconds");
    }
    if resources.cpu_quota > 0 && resources.cpu_quota < CPU_QUOTA_MIN_US {
        return wrong("cpu_quota", "is less than 1000 microseconds");
    }
    if resources
        .hugepage_limits
        .iter()
        .any(|limit| limit.limit > 0)
    {
        return wrong(
            "hugepage_limits",
            "asks for huge pages, which a guest does not have",
        );
    }
    Ok(())
}

fn check_cpuset(key: &str, list: &str) -> Result<(), FieldError> {
    if list
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b',' || byte == b'-')
    {
        return Ok(());
    }
    let field = format!("config.linux.resources.cpuset_{key}");
    Err(FieldError::new(
        field,
        "is not a list of numbers and ranges",
    ))
}

/// `controller.file`: the agent writes to it as root, so it must not lead anywhere else.
fn is_cgroup_file(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || matches!(byte, b'.' | b'_');
    name.contains('.') && !name.starts_with("cgroup.") && name.bytes().all(allowed)
}

/// Adds the guest's own devices that were asked for; the agent adds those that are disks.
pub(super) fn add_devices(linux: &mut Value, devices: &[Device]) {
    for device in devices {
        let DeviceSource::Guest { major, minor } = device.source else {
            continue;
        };
        let node = json!({
            "path": device.container_path,
            "type": "c",
            "major": major,
            "minor": minor,
            "fileMode": device.mode,
            "uid": 0,
            "gid": 0,
        });
        let rule = json!({
            "allow": true,
            "type": "c",
            "major": major,
            "minor": minor,
            "access": device.access,
        });
        for (list, entry) in [("/devices", node), ("/resources/devices", rule)] {
            match linux.pointer_mut(list).and_then(Value::as_array_mut) {
                Some(entries) => entries.push(entry),
                None => linux["devices"] = json!([entry]),
            }
        }
    }
}

/// Which devices a container may use, whatever nodes it makes.
fn devices(privileged: bool) -> Value {
    if privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let allow = |major: i64, minor: Option<i64>| {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = minor.into();
        }
        rule
    };
    json!([
        { "allow": false, "access": "rwm" },
        // Nodes may be made, and not opened.
        { "allow": true, "type": "c", "access": "m" },
        { "allow": true, "type": "b", "access": "m" },
        // null, zero, full, random, urandom, tty, console, ptmx, and the pseudo terminals.
        allow(1, Some(3)),
        allow(1, Some(5)),
        allow(1, Some(7)),
        allow(1, Some(8)),
        allow(1, Some(9)),
        allow(5, Some(0)),
        allow(5, Some(1)),
        allow(5, Some(2)),
        allow(136, None),
    ])
}

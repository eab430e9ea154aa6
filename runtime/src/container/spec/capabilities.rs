//! Capabilities (`capabilities(7)`).

use std::collections::BTreeSet;

use isopod_proto::cri;
use serde_json::{Value, json};

use crate::field::FieldError;

/// Every capability of Linux 5.9 and later.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has that asks for nothing, as in containerd.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The names of a container's capabilities, without `CAP_`.
pub(super) fn granted(
    security: &cri::LinuxContainerSecurityContext,
) -> Result<BTreeSet<&'static str>, FieldError> {
    if security.privileged {
        return Ok(ALL.into());
    }
    let asked = security.capabilities.clone().unwrap_or_default();
    let mut granted = BTreeSet::from(DEFAULT);
    // "ALL" first, so that single ones can be taken out of, or put on top of, all.
    if has_all(&asked.add_capabilities) {
        granted.extend(ALL);
    }
    if has_all(&asked.drop_capabilities) {
        granted.clear();
    }
    for name in names("add_capabilities", &asked.add_capabilities)? {
        granted.insert(name);
    }
    for name in names("drop_capabilities", &asked.drop_capabilities)? {
        granted.remove(name);
    }
    Ok(granted)
}

/// The spec's `process.capabilities`.
pub(super) fn of(security: &cri::LinuxContainerSecurityContext) -> Result<Value, FieldError> {
    let granted: Vec<_> = granted(security)?.into_iter().map(prefixed).collect();
    let ambient = security
        .capabilities
        .clone()
        .unwrap_or_default()
        .add_ambient_capabilities;
    let ambient: Vec<_> = names("add_ambient_capabilities", &ambient)?
        .into_iter()
        .map(prefixed)
        .collect();
    if let Some(missing) = ambient.iter().find(|name| !granted.contains(name)) {
        return Err(FieldError::new(
            "config.linux.security_context.capabilities.add_ambient_capabilities",
            format!("names {missing}, which the container does not have"),
        ));
    }
    Ok(json!({
        "bounding": granted,
        "effective": granted,
        "permitted": granted,
        // A capability is ambient only if it is inheritable.
        "inheritable": ambient,
        "ambient": ambient,
    }))
}

fn prefixed(name: &str) -> String {
    format!("CAP_{name}")
}

fn has_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case("ALL"))
}

/// Known names, however they are written; "ALL" is left out.
fn names(field: &str, asked: &[String]) -> Result<Vec<&'static str>, FieldError> {
    let mut known = Vec::with_capacity(asked.len());
    for name in asked
        .iter()
        .filter(|name| !name.eq_ignore_ascii_case("ALL"))
    {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let found = ALL.into_iter().find(|capability| *capability == bare);
        known.push(found.ok_or_else(|| {
            FieldError::new(
                format!("config.linux.security_context.capabilities.{field}"),
                format!("names {name:?}, which is no capability"),
            )
        })?);
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted_with(add: &[&str], drop: &[&str]) -> Result<BTreeSet<&'static str>, FieldError> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        granted(&cri::LinuxContainerSecurityContext {
            capabilities: Some(cri::Capability {
                add_capabilities: owned(add),
                drop_capabilities: owned(drop),
                add_ambient_capabilities: Vec::new(),
            }),
            ..Default::default()
        })
    }

    #[test]
    fn single_capabilities_are_added_to_and_dropped_from_the_default() {
        let granted = granted_with(&["NET_ADMIN", "cap_sys_time"], &["KILL"]).unwrap();
        assert!(granted.contains("NET_ADMIN") && granted.contains("SYS_TIME"));
        assert!(!granted.contains("KILL"));
        assert_eq!(granted.len(), DEFAULT.len() + 1);
    }

    #[test]
    fn all_is_the_base_that_single_ones_change() {
        assert_eq!(
            granted_with(&["NET_RAW"], &["ALL"]).unwrap(),
            BTreeSet::from(["NET_RAW"])
        );
        let most = granted_with(&["ALL"], &["SYS_ADMIN"]).unwrap();
        assert_eq!(most.len(), ALL.len() - 1);
    }

    #[test]
    fn unknown_capability_is_refused() {
        let error = granted_with(&["FLY"], &[]).unwrap_err();
        assert!(error.reason.contains("FLY"), "{error}");
    }
}

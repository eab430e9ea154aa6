//! The system call filter of a container.
//!
//! The contract with the kubelet: a container that asks for `RuntimeDefault` or a local profile has it
//! enforced in the guest; one that names no profile is unconfined, as one that is privileged. What
//! pods without a profile get is the kubelet's `seccompDefault`. A local profile is a file on the node,
//! in the OCI runtime-spec's form; its contents travel to the guest in the spec.

mod default;

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use isopod_proto::cri;
use isopod_proto::cri::security_profile::ProfileType;
use serde_json::Value;

use super::capabilities;
use crate::field::FieldError;

/// Largest local profile, in bytes.
const PROFILE_MAX: u64 = 1 << 20;
const FIELD: &str = "config.linux.security_context.seccomp";

/// The spec's `linux.seccomp`; `None` for an unconfined container. Reads a file when the profile is
/// a local one.
pub(super) fn filter(
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Option<Value>, FieldError> {
    if security.privileged {
        return Ok(None);
    }
    let Some(profile) = &security.seccomp else {
        return of_the_old_field(security);
    };
    match profile.profile_type() {
        ProfileType::RuntimeDefault => {
            Ok(Some(default::profile(&capabilities::granted(security)?)))
        }
        ProfileType::Unconfined => Ok(None),
        ProfileType::Localhost => local(&profile.localhost_ref).map(Some),
    }
}

#[expect(
    deprecated,
    reason = "the old field must not be ignored when the new one is missing"
)]
fn of_the_old_field(
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Option<Value>, FieldError> {
    // Other values were refused before.
    if security.seccomp_profile_path != "runtime/default" {
        return Ok(None);
    }
    Ok(Some(default::profile(&capabilities::granted(security)?)))
}

fn local(reference: &str) -> Result<Value, FieldError> {
    let wrong = |reason: String| FieldError::new(format!("{FIELD}.localhost_ref"), reason);
    let path = Path::new(reference);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(wrong("is not an absolute path without `..`".into()));
    }
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PROFILE_MAX).read_to_end(&mut text))
        .map_err(|error| wrong(format!("{reference:?} cannot be read: {error}")))?;
    // Checked against the type that the guest reads, and no other keys are passed on.
    let profile: oci_spec::runtime::LinuxSeccomp = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("{reference:?} is no seccomp profile: {error}")))?;
    if profile.listener_path().is_some() {
        return Err(wrong(format!(
            "{reference:?} wants a listener, which is not supported yet"
        )));
    }
    serde_json::to_value(profile)
        .map_err(|error| wrong(format!("{reference:?} is no seccomp profile: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(profile_type: ProfileType, localhost_ref: &str) -> cri::LinuxContainerSecurityContext {
        cri::LinuxContainerSecurityContext {
            seccomp: Some(cri::SecurityProfile {
                profile_type: profile_type.into(),
                localhost_ref: localhost_ref.into(),
            }),
            ..Default::default()
        }
    }

    #[test]
    #[expect(deprecated, reason = "the old field is still honoured")]
    fn default_profile_is_for_those_who_ask_for_it() {
        let asked = filter(&with(ProfileType::RuntimeDefault, ""))
            .unwrap()
            .unwrap();
        assert_eq!(asked["defaultAction"], "SCMP_ACT_ERRNO");
        let old = |path: &str| {
            filter(&cri::LinuxContainerSecurityContext {
                seccomp_profile_path: path.into(),
                ..Default::default()
            })
        };
        assert_eq!(old("runtime/default").unwrap(), Some(asked));
        assert_eq!(old("unconfined").unwrap(), None);
        assert_eq!(old("").unwrap(), None);
    }

    #[test]
    fn unconfined_and_privileged_containers_have_no_filter() {
        assert_eq!(filter(&with(ProfileType::Unconfined, "")).unwrap(), None);
        let mut privileged = with(ProfileType::RuntimeDefault, "");
        privileged.privileged = true;
        assert_eq!(filter(&privileged).unwrap(), None);
    }

    #[test]
    fn local_profile_is_read_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.json");
        let local = |text: &str| {
            std::fs::write(&path, text).unwrap();
            filter(&with(ProfileType::Localhost, path.to_str().unwrap()))
        };
        let read = local(
            r#"{"defaultAction":"SCMP_ACT_ALLOW",
                "syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#,
        );
        assert_eq!(read.unwrap().unwrap()["syscalls"][0]["names"][0], "chmod");
        assert!(local(r#"{"defaultAction":"NONSENSE"}"#).is_err());
        assert!(filter(&with(ProfileType::Localhost, "/nowhere.json")).is_err());
        assert!(filter(&with(ProfileType::Localhost, "relative.json")).is_err());
        assert!(filter(&with(ProfileType::Localhost, "/a/../b.json")).is_err());
    }
}

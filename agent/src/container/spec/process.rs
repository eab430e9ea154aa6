//! The container's first process.

use oci_spec::runtime::{
    Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, Process, UserBuilder,
};

use super::SpecError;
use crate::container::Identity;

/// Gives it its user, and no more rights than are listed.
pub(super) fn settle(process: &mut Process, identity: &Identity) -> Result<(), SpecError> {
    let mut user = UserBuilder::default()
        .uid(identity.uid)
        .gid(identity.gid)
        .additional_gids(identity.groups.clone());
    if let Some(umask) = process.user().umask() {
        user = user.umask(umask);
    }
    process.set_user(user.build().map_err(|_field| SpecError::Builder("user"))?);

    let mut env = process.env().clone().unwrap_or_default();
    // Otherwise libcontainer asks glibc, which loads what the container's nsswitch.conf names.
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", identity.home));
    }
    process.set_env(Some(env));

    // libcontainer takes "false" for a wish to have it, when it loads the system call filter.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    // What is not listed is not granted; libcontainer leaves a missing set as it is.
    let given = process.capabilities().as_ref();
    let set = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        given
            .and_then(|given| get(given).clone())
            .unwrap_or_default()
    };
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(set(LinuxCapabilities::bounding))
        .effective(set(LinuxCapabilities::effective))
        .permitted(set(LinuxCapabilities::permitted))
        .inheritable(set(LinuxCapabilities::inheritable))
        .ambient(set(LinuxCapabilities::ambient))
        .build()
        .map_err(|_field| SpecError::Builder("capabilities"))?;
    process.set_capabilities(Some(capabilities));
    Ok(())
}

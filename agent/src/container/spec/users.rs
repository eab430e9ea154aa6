//! What the spec says of the sandbox's user namespace.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};

use super::{ContainerSpec, SpecError, join};
use crate::user_namespace::Users;

/// A mount that shows its files with the ids that they have in the sandbox's user namespace.
#[derive(Debug)]
pub(crate) struct MappedMount {
    /// Which of the spec's.
    pub(crate) index: usize,
    /// What it is of.
    pub(crate) source: PathBuf,
}

impl ContainerSpec {
    /// The mounts whose files have the sandbox's ids. The spec says nothing about it from now on: what
    /// they are of must be replaced ([`ContainerSpec::set_source`]).
    ///
    /// # Errors
    ///
    /// [`SpecError::Users`] for other ids than the sandbox's.
    pub(crate) fn take_mapped(
        &mut self,
        users: Option<&Users>,
    ) -> Result<Vec<MappedMount>, SpecError> {
        let mut mapped = Vec::new();
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        for (index, mount) in mounts.iter_mut().enumerate() {
            let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
            if uids.is_none() && gids.is_none() {
                continue;
            }
            let sandboxes = users.is_some_and(|users| users.ids.is(uids.as_ref(), gids.as_ref()));
            if !sandboxes || mount.typ().as_deref() != Some("bind") {
                return Err(SpecError::Users("id mapping of a mount"));
            }
            let source = mount.source().clone();
            let source = source.ok_or(SpecError::Missing("source of a mount"))?;
            mapped.push(MappedMount { index, source });
            mount.set_uid_mappings(None);
            mount.set_gid_mappings(None);
        }
        self.spec.set_mounts(Some(mounts));
        Ok(mapped)
    }

    /// Replaces what a mount is of.
    pub(crate) fn set_source(&mut self, index: usize, source: PathBuf) {
        let mounts = self.spec.mounts_mut().as_mut();
        if let Some(mount) = mounts.and_then(|mounts| mounts.get_mut(index)) {
            mount.set_source(Some(source));
        }
    }
}

/// Has the container join the sandbox's user namespace, and those that belong to it.
pub(super) fn settle(
    linux: &mut Linux,
    namespaces: &mut Vec<LinuxNamespace>,
    users: Option<&Users>,
) -> Result<(), SpecError> {
    let asked = namespaces
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let Some(users) = users else {
        return match asked {
            None => Ok(()),
            Some(_) => Err(SpecError::Users("user namespace")),
        };
    };
    let (uids, gids) = (linux.uid_mappings(), linux.gid_mappings());
    let asked = asked.is_some_and(|namespace| namespace.path().is_none());
    if !asked || !users.ids.is(uids.as_ref(), gids.as_ref()) {
        return Err(SpecError::Users("user namespace"));
    }
    if linux
        .devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        // They would be bound from the guest's own /dev, by name.
        return Err(SpecError::Builder(
            "devices cannot be had in a user namespace",
        ));
    }
    linux.set_uid_mappings(None);
    linux.set_gid_mappings(None);
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::User);
    namespaces.push(join(LinuxNamespaceType::User, &users.namespace("user"))?);
    // What the container does not have of its own it must have power over all the same.
    for (typ, name) in [
        (LinuxNamespaceType::Ipc, "ipc"),
        (LinuxNamespaceType::Uts, "uts"),
    ] {
        if !namespaces.iter().any(|namespace| namespace.typ() == typ) {
            namespaces.push(join(typ, &users.namespace(name))?);
        }
    }
    Ok(())
}

//! Makes the caller's OCI spec the container's own.
//!
//! The caller describes the container; where it lies in this guest is the agent's to say: the root
//! file system, the cgroup, the pid namespace to join, the files that the sandbox shares.

mod devices;
mod mounts;
mod process;
mod users;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxDeviceCgroup, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp,
    Process, RootBuilder, Spec,
};

pub(crate) use self::devices::Device;
pub(crate) use self::mounts::Source;
pub(crate) use self::users::MappedMount;
use super::{IdError, Identity};
use crate::user_namespace::Users;

/// Longest spec, in bytes of JSON.
const SPEC_MAX: usize = 2 * 1024 * 1024;

/// Most arguments of a command, and most variables in its environment.
const STRINGS_MAX: usize = 65_536;

/// A spec that cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// Larger than any real one.
    #[error("a spec of {0} bytes is over the limit of {SPEC_MAX}")]
    Size(usize),
    /// Not an OCI runtime spec.
    #[error("not an OCI runtime spec")]
    Json(#[source] serde_json::Error),
    /// It says nothing about something that is needed.
    #[error("the spec has no {0}")]
    Missing(&'static str),
    /// A command line or environment that cannot be passed to exec(2).
    #[error("the spec's {0} has a NUL byte in it, or too many entries")]
    Strings(&'static str),
    /// Not of this form.
    #[error("the spec's version {0:?} is not 1.x")]
    Version(String),
    /// A mount of something that has no such name.
    #[error("the spec's mount at {destination}")]
    Mount {
        /// Where.
        destination: PathBuf,
        /// Why not.
        #[source]
        source: IdError,
    },
    /// A mount of an image's part that is no path in it.
    #[error("the spec's mount at {0} has no source in the form `serial/path`, without `..`")]
    Part(PathBuf),
    /// The user namespace, or the ids of a mount, are not the sandbox's.
    #[error("the spec's {0} is not that of the sandbox")]
    Users(&'static str),
    /// Something that does not fit together.
    #[error("the spec's {0}")]
    Builder(&'static str),
}

/// Which pid namespace a container is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidNamespace {
    /// What the spec says: a new one, usually.
    Own,
    /// That of the process at this path (`/proc/<pid>/ns/pid`).
    Shared(PathBuf),
}

/// Where a container lies in this guest.
#[derive(Debug)]
pub(crate) struct Place {
    /// Mount point of its root file system.
    pub(crate) rootfs: PathBuf,
    /// No process may write to it.
    pub(crate) read_only: bool,
    /// Its cgroup, absolute in the hierarchy.
    pub(crate) cgroup: PathBuf,
    /// Its pid namespace.
    pub(crate) pid_namespace: PidNamespace,
    /// Files of the sandbox, and where containers see them.
    pub(crate) shared_files: Vec<(PathBuf, &'static str)>,
    /// What the mounts are of that the caller names ([`ContainerSpec::sources`]), in their order.
    pub(crate) sources: Vec<PathBuf>,
    /// Block devices beside those of the spec.
    pub(crate) devices: Vec<Device>,
    /// The sandbox's user namespace.
    pub(crate) users: Option<Users>,
}

/// A checked spec.
#[derive(Debug)]
pub(crate) struct ContainerSpec {
    spec: Spec,
}

impl ContainerSpec {
    /// Reads a spec that a caller sent.
    ///
    /// # Errors
    ///
    /// [`SpecError`] when it is not one, or misses what every container needs.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, SpecError> {
        if json.len() > SPEC_MAX {
            return Err(SpecError::Size(json.len()));
        }
        let spec: Spec = serde_json::from_slice(json).map_err(SpecError::Json)?;
        if !spec.version().starts_with("1.") {
            return Err(SpecError::Version(spec.version().clone()));
        }
        if spec.linux().is_none() {
            return Err(SpecError::Missing("linux section"));
        }
        let process = spec
            .process()
            .as_ref()
            .ok_or(SpecError::Missing("process"))?;
        check_strings("command", process.args().as_deref().unwrap_or_default())?;
        check_strings("environment", process.env().as_deref().unwrap_or_default())?;
        if process.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(SpecError::Missing("command"));
        }
        Ok(Self { spec })
    }

    /// Puts the container in its place and gives its process an identity.
    ///
    /// # Errors
    ///
    /// [`SpecError::Builder`] for what the spec's own rules refuse.
    pub(crate) fn settle(&mut self, place: &Place, identity: &Identity) -> Result<(), SpecError> {
        let spec = &mut self.spec;
        let root = RootBuilder::default()
            .path(&place.rootfs)
            .readonly(place.read_only);
        spec.set_root(Some(
            root.build().map_err(|_field| SpecError::Builder("root"))?,
        ));

        let mut linux = spec
            .linux()
            .clone()
            .ok_or(SpecError::Missing("linux section"))?;
        linux.set_cgroups_path(Some(place.cgroup.clone()));
        for device in &place.devices {
            devices::add(&mut linux, device)?;
        }
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        if let PidNamespace::Shared(path) = &place.pid_namespace {
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
            namespaces.push(join(LinuxNamespaceType::Pid, path)?);
        }
        users::settle(&mut linux, &mut namespaces, place.users.as_ref())?;
        // Without a namespace of its own the container has the sandbox's name, and must not set it.
        if !namespaces.iter().any(|namespace| {
            namespace.typ() == LinuxNamespaceType::Uts && namespace.path().is_none()
        }) {
            spec.set_hostname(None);
            spec.set_domainname(None);
        }
        linux.set_namespaces(Some(namespaces));
        spec.set_linux(Some(linux));

        mounts::settle(spec, place)?;

        let mut process = spec
            .process()
            .clone()
            .ok_or(SpecError::Missing("process"))?;
        process::settle(&mut process, identity)?;
        spec.set_process(Some(process));
        Ok(())
    }

    /// The spec as libcontainer reads it.
    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The container's first process, whose environment and rights its execs inherit.
    pub(crate) fn process(&self) -> Option<&Process> {
        self.spec.process().as_ref()
    }

    /// The system call filter.
    pub(crate) fn seccomp(&self) -> Option<&LinuxSeccomp> {
        self.spec.linux().as_ref()?.seccomp().as_ref()
    }

    /// Rules for devices, beside the standard ones.
    pub(crate) fn device_rules(&self) -> &[LinuxDeviceCgroup] {
        let resources = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref());
        resources
            .and_then(|resources| resources.devices().as_deref())
            .unwrap_or_default()
    }

    /// Whether the init's end ends every process: it is PID 1 of a namespace of its own.
    pub(crate) fn has_own_pid_namespace(&self) -> bool {
        let namespaces = self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref());
        namespaces.is_some_and(|namespaces| {
            namespaces.iter().any(|namespace| {
                namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none()
            })
        })
    }
}

/// Checks a command line or an environment.
///
/// # Errors
///
/// [`SpecError::Strings`].
pub(crate) fn check_strings(what: &'static str, strings: &[String]) -> Result<(), SpecError> {
    if strings.len() > STRINGS_MAX || strings.iter().any(|string| string.contains('\0')) {
        return Err(SpecError::Strings(what));
    }
    Ok(())
}

fn join(typ: LinuxNamespaceType, path: &Path) -> Result<LinuxNamespace, SpecError> {
    LinuxNamespaceBuilder::default()
        .typ(typ)
        .path(path)
        .build()
        .map_err(|_field| SpecError::Builder("namespaces"))
}

#[cfg(test)]
mod tests;

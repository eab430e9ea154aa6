//! From a CRI container and its image to an OCI runtime spec, as containerd makes it, for a guest
//! that belongs to the pod.
//!
//! The guest is the pod's network, UTS and IPC namespace, so containers join those by having none
//! of their own; mount, cgroup and, on demand, pid and IPC namespaces are the container's. The
//! agent adds what only the guest knows: the root's path, the user's ids, the cgroup, the pid
//! namespace to share and the files behind `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
//!
//! Pure: a function of the request, called before anything is created.

mod capabilities;
mod identity;
mod linux;
mod mounts;
mod process;
mod seccomp;

pub(crate) use self::linux::limits;
pub(crate) use self::process::check_oom_score_adj;

use isopod_proto::agent::User;
use isopod_proto::cri;
use serde_json::json;

use super::ContainerConfig;
use crate::field::FieldError;
use crate::image::Image;
use crate::sandbox::{PodConfig, USERS, UserNamespace};

/// The form of the spec (OCI runtime-spec).
const OCI_VERSION: &str = "1.2.0";
/// Longest spec, in bytes: a ttrpc message holds 4 MiB.
const SPEC_MAX: usize = 2 << 20;

/// What the agent is asked to make.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// The spec as JSON.
    pub(crate) spec: Vec<u8>,
    /// Who the process runs as.
    pub(crate) user: User,
    /// No process may write to the root file system.
    pub(crate) read_only: bool,
    /// Whose pids it sees.
    pub(crate) pids: PidMode,
}

/// Whose pids a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidMode {
    /// Those of all of the pod's containers that share them, too (the CRI's default).
    Pod,
    /// Its own only.
    Container,
    /// Those of this container of the pod.
    Target(String),
}

impl Plan {
    /// Plans a container of `pod`; `own` is the checked form of its configuration.
    ///
    /// # Errors
    ///
    /// [`FieldError`] names what is wrong or cannot be honoured.
    pub(crate) fn new(
        config: &cri::ContainerConfig,
        image: &Image,
        pod: &PodConfig,
        own: &ContainerConfig,
    ) -> Result<Self, FieldError> {
        let linux = config.linux.clone().unwrap_or_default();
        let security = linux.security_context.unwrap_or_default();
        if security.privileged && !pod.privileged {
            return Err(FieldError::new(
                "config.linux.security_context.privileged",
                "asks for more than the pod, which is not privileged",
            ));
        }
        let namespaces = security.namespace_options.clone().unwrap_or_default();
        let pids = pid_mode(&namespaces)?;
        let own_ipc = own_ipc(&namespaces)?;
        let users = pod.user_namespace;
        check_users(&namespaces, users, own)?;
        let resources = linux.resources.unwrap_or_default();
        // What the image declares as volumes is writable whatever the root is.
        let writable = match security.readonly_rootfs {
            true => image_volumes(image),
            false => Vec::new(),
        };
        let owned = linux::Owned {
            ipc: own_ipc,
            pids: pids == PidMode::Container,
            users,
        };
        let mut linux = linux::linux(&security, &resources, &owned)?;
        linux::add_devices(&mut linux, &own.devices);
        let spec = json!({
            "ociVersion": OCI_VERSION,
            "process": process::process(config, image, pod, &security, &resources)?,
            "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
            "mounts": mounts::mounts(security.privileged, &owned, &own.mounts, &writable),
            "linux": linux,
        });
        let spec = spec.to_string().into_bytes();
        if spec.len() > SPEC_MAX {
            return Err(FieldError::new("config", "makes a spec of more than 2 MiB"));
        }
        let user = identity::user(&security, image, users.as_ref())?;
        Ok(Self {
            spec,
            user,
            read_only: security.readonly_rootfs,
            pids,
        })
    }
}

/// Where the image says that its data is.
fn image_volumes(image: &Image) -> Vec<String> {
    let config = image.config.config().as_ref();
    config
        .and_then(|config| config.volumes().clone())
        .unwrap_or_default()
}

fn pid_mode(options: &cri::NamespaceOption) -> Result<PidMode, FieldError> {
    match options.pid() {
        cri::NamespaceMode::Pod => Ok(PidMode::Pod),
        cri::NamespaceMode::Container => Ok(PidMode::Container),
        cri::NamespaceMode::Target if options.target_id.is_empty() => Err(FieldError::new(
            "config.linux.security_context.namespace_options.target_id",
            "is empty",
        )),
        cri::NamespaceMode::Target => Ok(PidMode::Target(options.target_id.clone())),
        cri::NamespaceMode::Node => Err(of_host("pid")),
    }
}

fn own_ipc(options: &cri::NamespaceOption) -> Result<bool, FieldError> {
    if options.network() == cri::NamespaceMode::Node {
        return Err(of_host("network"));
    }
    match options.ipc() {
        cri::NamespaceMode::Pod => Ok(false),
        cri::NamespaceMode::Container => Ok(true),
        cri::NamespaceMode::Node => Err(of_host("ipc")),
        cri::NamespaceMode::Target => Err(FieldError::new(
            "config.linux.security_context.namespace_options.ipc",
            "TARGET is for pid alone",
        )),
    }
}

/// A container says the same of the user namespace as its pod.
fn check_users(
    options: &cri::NamespaceOption,
    of_pod: Option<UserNamespace>,
    own: &ContainerConfig,
) -> Result<(), FieldError> {
    let asked = UserNamespace::check(options.userns_options.as_ref(), USERS)?;
    if asked != of_pod {
        return Err(FieldError::new(USERS, "is not the same as the pod's"));
    }
    if of_pod.is_some() && !own.devices.is_empty() {
        let reason = "are root's in the guest, which nobody in the pod's user namespace is";
        return Err(FieldError::new("config.devices", reason));
    }
    Ok(())
}

fn of_host(name: &str) -> FieldError {
    FieldError::new(
        format!("config.linux.security_context.namespace_options.{name}"),
        "NODE asks for a namespace of the host, which a pod in its own virtual machine cannot join",
    )
}

#[cfg(test)]
mod tests;

//! What a pod asks for, checked, in the form that its record keeps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use isopod_proto::cri;
use serde::{Deserialize, Serialize};

use super::size::{self, GuestSize};
use super::users::UserNamespace;
use crate::cgroup::check_parent;
use crate::config::VmConfig;
use crate::field::FieldError;
use crate::network::PortMapping;

/// Where a request asks for a user namespace, a pod's and a container's.
pub(crate) const USERS: &str = "config.linux.security_context.namespace_options.userns_options";

/// Longest host name (`gethostname(2)`, `HOST_NAME_MAX`).
const HOSTNAME_MAX: usize = 64;

/// A pod's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodConfig {
    /// With namespace, uid and attempt: who it is.
    pub(crate) name: String,
    /// Kubernetes' unique id of the pod.
    pub(crate) uid: String,
    /// Kubernetes' namespace.
    pub(crate) namespace: String,
    /// Which try at this pod.
    pub(crate) attempt: u32,
    /// Empty: the guest keeps its own.
    pub(crate) hostname: String,
    /// Where its containers' logs go; empty: nowhere.
    pub(crate) log_directory: PathBuf,
    /// What the pod's resolver is told.
    pub(crate) dns: Dns,
    /// Ports of the node that lead to the pod.
    #[serde(default)]
    pub(crate) port_mappings: Vec<PortMapping>,
    /// For selection.
    pub(crate) labels: BTreeMap<String, String>,
    /// For others.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Kernel settings, set in the guest.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Containers may be privileged: in the guest, not on the host.
    pub(crate) privileged: bool,
    /// What the pod's containers do with the pod's pid namespace, for the status alone: each
    /// container says it for itself.
    pub(crate) shares_pids: bool,
    /// Its containers' root is not the guest's.
    #[serde(default)]
    pub(crate) user_namespace: Option<UserNamespace>,
    /// The pod's cgroup on the host, in which its VMM gets one of its own; empty: the root.
    pub(crate) cgroup_parent: String,
    /// The guest's processors and memory.
    pub(crate) size: GuestSize,
    /// Memory of the host that it has room for beside its containers' limits, in MiB; 0: not told.
    #[serde(default)]
    pub(crate) overhead_mib: u32,
}

/// A resolver's configuration (`resolv.conf(5)`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dns {
    /// Name servers.
    pub(crate) servers: Vec<String>,
    /// Search domains.
    pub(crate) searches: Vec<String>,
    /// Options.
    pub(crate) options: Vec<String>,
}

impl PodConfig {
    /// Checks a request's configuration. `networks`: pods have one.
    ///
    /// # Errors
    ///
    /// [`FieldError`] names the first field that is wrong or cannot be honoured.
    pub(crate) fn check(
        config: cri::PodSandboxConfig,
        defaults: &VmConfig,
        networks: bool,
    ) -> Result<Self, FieldError> {
        let metadata = config
            .metadata
            .ok_or_else(|| FieldError::new("config.metadata", "is missing"))?;
        if metadata.name.is_empty() {
            return Err(FieldError::new("config.metadata.name", "is empty"));
        }
        check_hostname(&config.hostname)?;
        let log_directory = PathBuf::from(&config.log_directory);
        if !config.log_directory.is_empty() && !is_plain_absolute(&log_directory) {
            let reason = "is not an absolute path without `..`";
            return Err(FieldError::new("config.log_directory", reason));
        }
        let port_mappings = check_port_mappings(&config.port_mappings, networks)?;
        FieldError::refuse_if(config.windows.is_some(), "config.windows")?;
        let linux = config.linux.unwrap_or_default();
        check_parent(&linux.cgroup_parent)?;
        let size = GuestSize::of(&linux, defaults)?;
        let security = linux.security_context.unwrap_or_default();
        let namespaces = security.namespace_options.as_ref();
        let shares_pids = check_namespaces(namespaces)?;
        let users = namespaces.and_then(|options| options.userns_options.as_ref());
        let user_namespace = UserNamespace::check(users, USERS)?;
        let dns = config.dns_config.unwrap_or_default();
        Ok(Self {
            name: metadata.name,
            uid: metadata.uid,
            namespace: metadata.namespace,
            attempt: metadata.attempt,
            hostname: config.hostname,
            log_directory,
            dns: Dns {
                servers: dns.servers,
                searches: dns.searches,
                options: dns.options,
            },
            port_mappings,
            labels: config.labels.into_iter().collect(),
            annotations: config.annotations.into_iter().collect(),
            sysctls: linux.sysctls.into_iter().collect(),
            privileged: security.privileged,
            shares_pids,
            user_namespace,
            cgroup_parent: linux.cgroup_parent,
            size,
            overhead_mib: size::overhead_mib(linux.overhead.as_ref()),
        })
    }

    /// What no two sandboxes may have in common, in containerd's form.
    pub(crate) fn full_name(&self) -> String {
        format!(
            "{}_{}_{}_{}",
            self.name, self.namespace, self.uid, self.attempt
        )
    }
}

/// Whether a path is absolute and goes nowhere but down.
fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

/// Those that lead somewhere: the kubelet sends every port that a container names, most of them
/// without one of the node.
fn check_port_mappings(
    mappings: &[cri::PortMapping],
    networks: bool,
) -> Result<Vec<PortMapping>, FieldError> {
    let host_port = "config.port_mappings.host_port";
    let port = |field: &str, port: i32| {
        u16::try_from(port)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| FieldError::new(field, "is not a port (1 to 65535)"))
    };
    let mut checked = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        if !networks {
            let reason = "leads to no pod: cni.enabled is false, and pods have no network";
            return Err(FieldError::new(host_port, reason));
        }
        let ip = &mapping.host_ip;
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            let reason = "is not an IP address";
            return Err(FieldError::new("config.port_mappings.host_ip", reason));
        }
        checked.push(PortMapping {
            protocol: match mapping.protocol() {
                cri::Protocol::Tcp => "tcp",
                cri::Protocol::Udp => "udp",
                cri::Protocol::Sctp => "sctp",
            }
            .to_owned(),
            container_port: port(
                "config.port_mappings.container_port",
                mapping.container_port,
            )?,
            host_port: port(host_port, mapping.host_port)?,
            host_ip: ip.clone(),
        });
    }
    Ok(checked)
}

fn check_hostname(name: &str) -> Result<(), FieldError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if name.len() <= HOSTNAME_MAX && name.bytes().all(allowed) {
        return Ok(());
    }
    let reason = format!("is not a host name of at most {HOSTNAME_MAX} letters, digits, `-`, `.`");
    Err(FieldError::new("config.hostname", reason))
}

/// Whether the pod's containers share their pids. A guest has no namespace of the host to share.
fn check_namespaces(options: Option<&cri::NamespaceOption>) -> Result<bool, FieldError> {
    let Some(options) = options else {
        return Ok(true);
    };
    let field = |name: &str| format!("config.linux.security_context.namespace_options.{name}");
    let of_host = "NODE asks for a namespace of the host, which a pod in its own virtual machine \
                   cannot join";
    for (name, mode) in [
        ("network", options.network()),
        ("pid", options.pid()),
        ("ipc", options.ipc()),
    ] {
        match mode {
            cri::NamespaceMode::Node => return Err(FieldError::new(field(name), of_host)),
            cri::NamespaceMode::Target => {
                return Err(FieldError::new(field(name), "TARGET is for containers"));
            }
            cri::NamespaceMode::Pod | cri::NamespaceMode::Container => {}
        }
    }
    Ok(options.pid() == cri::NamespaceMode::Pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            ..Default::default()
        }
    }

    fn refused(change: impl FnOnce(&mut cri::PodSandboxConfig)) -> String {
        let mut config = config();
        change(&mut config);
        PodConfig::check(config, &VmConfig::default(), false)
            .unwrap_err()
            .field
    }

    #[test]
    fn smallest_configuration_is_enough() {
        let checked = PodConfig::check(config(), &VmConfig::default(), false).unwrap();
        assert_eq!(checked.full_name(), "web_default_u1_2");
        assert!(checked.shares_pids);
    }

    #[test]
    fn namespaces_of_the_host_are_refused_by_name() {
        let with = |options: cri::NamespaceOption| {
            refused(|config| {
                config.linux = Some(cri::LinuxPodSandboxConfig {
                    security_context: Some(cri::LinuxSandboxSecurityContext {
                        namespace_options: Some(options),
                        ..Default::default()
                    }),
                    ..Default::default()
                });
            })
        };
        let node = cri::NamespaceMode::Node.into();
        let path = "config.linux.security_context.namespace_options.";
        let network = cri::NamespaceOption {
            network: node,
            ..Default::default()
        };
        assert_eq!(with(network), format!("{path}network"));
        let pid = cri::NamespaceOption {
            pid: node,
            ..Default::default()
        };
        assert_eq!(with(pid), format!("{path}pid"));
        let ipc = cri::NamespaceOption {
            ipc: node,
            ..Default::default()
        };
        assert_eq!(with(ipc), format!("{path}ipc"));
    }

    #[test]
    fn wrong_names_and_paths_are_refused_by_name() {
        assert_eq!(refused(|config| config.metadata = None), "config.metadata");
        assert_eq!(
            refused(|config| config.hostname = "a b".into()),
            "config.hostname"
        );
        assert_eq!(
            refused(|config| config.log_directory = "/var/log/../../etc".into()),
            "config.log_directory"
        );
        assert_eq!(
            refused(|config| {
                config.port_mappings = vec![cri::PortMapping {
                    host_port: 80,
                    ..Default::default()
                }];
            }),
            "config.port_mappings.host_port"
        );
    }

    #[test]
    fn ports_of_the_node_are_kept_and_others_mean_nothing() {
        let mut config = config();
        let mapping = |host_port, container_port, protocol: cri::Protocol| cri::PortMapping {
            protocol: protocol.into(),
            container_port,
            host_port,
            host_ip: "127.0.0.1".into(),
        };
        config.port_mappings = vec![
            mapping(0, 80, cri::Protocol::Tcp),
            mapping(8053, 53, cri::Protocol::Udp),
        ];
        let checked = PodConfig::check(config.clone(), &VmConfig::default(), true).unwrap();
        assert_eq!(
            checked.port_mappings,
            [PortMapping {
                protocol: "udp".into(),
                container_port: 53,
                host_port: 8053,
                host_ip: "127.0.0.1".into()
            }]
        );
        for (host_port, container_port) in [(-1, 80), (70_000, 80), (80, 0), (80, 70_000)] {
            config.port_mappings = vec![mapping(host_port, container_port, cri::Protocol::Tcp)];
            assert!(PodConfig::check(config.clone(), &VmConfig::default(), true).is_err());
        }
    }
}

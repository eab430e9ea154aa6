//! The daemon's configuration: one TOML file, one tree.
//!
//! Loaded once, when a command starts, and not changed afterwards. A key is a field here with its
//! default, a documented line in `default.toml` (a test compares the two) and, if its type admits
//! values that make no sense, a check in `validate`. [`load`] tells every problem of a file at
//! once, by key path.
//!
//! The serialised defaults are the schema: so no field is an `Option`, and a map is listed in
//! `load`.

mod load;
mod validate;

use std::collections::BTreeMap;
use std::net::{AddrParseError, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use self::load::ConfigError;

/// Where the configuration is when nobody says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/isopod/config.toml";

/// The documented configuration file, every key at its default.
pub(crate) const SAMPLE: &str = include_str!("default.toml");

/// Everything that `/etc/isopod/config.toml` can say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// The CRI socket.
    pub(crate) socket: PathBuf,
    /// What survives a reboot: images, records, writable layers.
    pub(crate) root_dir: PathBuf,
    /// What does not: sockets, one folder per sandbox.
    pub(crate) state_dir: PathBuf,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a `tracing` filter.
    pub(crate) log_level: String,
    /// The microVM.
    pub(crate) vm: VmConfig,
    /// Images and where they come from.
    pub(crate) registry: RegistryConfig,
    /// Pods' networks.
    pub(crate) cni: CniConfig,
    /// The server behind Exec, Attach and PortForward.
    pub(crate) streaming: StreamingConfig,
    /// The daemon's own metrics.
    pub(crate) metrics: MetricsConfig,
}

/// The microVM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VmConfig {
    /// The VMM binary.
    pub(crate) vmm: PathBuf,
    /// The KVM device.
    pub(crate) kvm: PathBuf,
    /// The guest kernel, an uncompressed `vmlinux`.
    pub(crate) kernel: PathBuf,
    /// The agent's image, an EROFS file system.
    pub(crate) agent_image: PathBuf,
    /// An initramfs in its place; empty for none.
    pub(crate) initramfs: PathBuf,
    /// Guest memory of a pod that sets no limit.
    pub(crate) memory_mib: u32,
    /// Most memory that a guest grows to; 0: as much as the host has.
    pub(crate) max_memory_mib: u32,
    /// vCPUs that a guest can bring up.
    pub(crate) max_vcpus: u32,
    /// Size of the sandbox's writable disk.
    pub(crate) scratch_mib: u64,
    /// What an image is to a guest.
    pub(crate) image_device: ImageDevice,
    /// How long a guest may take to answer after the VMM was started.
    pub(crate) start_timeout_ms: u64,
    /// Appended to the guest's kernel command line.
    pub(crate) kernel_args: String,
    /// Write the guest's console to `console.log` in the sandbox's folder. Slow.
    pub(crate) debug_console: bool,
}

/// What an image is to a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ImageDevice {
    /// A disk, whose pages the guest keeps in its own memory.
    #[default]
    #[serde(rename = "virtio-blk")]
    Blk,
    /// Memory of the host, which all guests share.
    #[serde(rename = "virtio-pmem")]
    Pmem,
}

/// Images and where they come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RegistryConfig {
    /// The largest layer that is pulled, uncompressed.
    pub(crate) max_layer_mib: u64,
    /// How long layers stay that no image has, for another try of the pull that left them.
    pub(crate) keep_layers_ms: u64,
    /// Docker's `config.json`: credentials for pulls that bring none. Empty: there is none.
    pub(crate) credentials_file: PathBuf,
    /// Images that are never removed to make room.
    pub(crate) pinned: Vec<String>,
    /// Where to pull a registry host's images from, tried in order, before the host itself.
    pub(crate) mirrors: BTreeMap<String, Vec<EndpointConfig>>,
}

/// A place that serves a registry's images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndpointConfig {
    /// `host` or `host:port`.
    pub(crate) host: String,
    /// Plain HTTP instead of HTTPS.
    #[serde(default)]
    pub(crate) plain_http: bool,
    /// Certificate authorities in PEM that it is trusted by, beside the system's. Empty: none.
    #[serde(default)]
    pub(crate) ca_file: PathBuf,
    /// Certificate in PEM that it is shown. Empty: none.
    #[serde(default)]
    pub(crate) client_cert_file: PathBuf,
    /// Private key in PEM of that certificate.
    #[serde(default)]
    pub(crate) client_key_file: PathBuf,
}

/// Pods' networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CniConfig {
    /// Pods have a network, and do not run without one.
    pub(crate) enabled: bool,
    /// Where network configurations are.
    pub(crate) config_dirs: Vec<PathBuf>,
    /// Where plugins are.
    pub(crate) plugin_dirs: Vec<PathBuf>,
    /// How long one run of a plugin may take.
    pub(crate) timeout_ms: u64,
}

/// The server behind Exec, Attach and PortForward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StreamingConfig {
    /// Address to listen on; port 0 takes any.
    pub(crate) address: SocketAddr,
    /// A stream on which nothing moves for so long is closed.
    pub(crate) idle_timeout_ms: u64,
}

/// The daemon's own metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MetricsConfig {
    /// Address to serve them on. Empty: they are not served.
    pub(crate) address: String,
}

impl MetricsConfig {
    /// The address; `None` when there is to be none.
    ///
    /// # Errors
    ///
    /// When it is not an address.
    pub(crate) fn address(&self) -> Result<Option<SocketAddr>, AddrParseError> {
        match self.address.as_str() {
            "" => Ok(None),
            address => address.parse().map(Some),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/isopod/isopod.sock".into(),
            root_dir: "/var/lib/isopod".into(),
            state_dir: "/run/isopod".into(),
            log_level: "info".into(),
            vm: VmConfig::default(),
            registry: RegistryConfig::default(),
            cni: CniConfig::default(),
            streaming: StreamingConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

/// What holds the agent, and is the guest's root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GuestRoot {
    /// An EROFS file system.
    AgentImage(PathBuf),
    /// An uncompressed cpio archive.
    Initramfs(PathBuf),
}

impl GuestRoot {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::AgentImage(path) | Self::Initramfs(path) => path,
        }
    }
}

impl VmConfig {
    /// What guests boot from, besides the kernel.
    pub(crate) fn root(&self) -> GuestRoot {
        if self.initramfs.as_os_str().is_empty() {
            GuestRoot::AgentImage(self.agent_image.clone())
        } else {
            GuestRoot::Initramfs(self.initramfs.clone())
        }
    }
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            vmm: "/usr/libexec/isopod/isopod-vmm".into(),
            kvm: "/dev/kvm".into(),
            kernel: "/usr/lib/isopod/vmlinux".into(),
            agent_image: "/usr/lib/isopod/agent.erofs".into(),
            initramfs: PathBuf::new(),
            memory_mib: 256,
            max_memory_mib: 0,
            max_vcpus: 2,
            scratch_mib: 10 * 1024,
            image_device: ImageDevice::default(),
            start_timeout_ms: 30_000,
            kernel_args: String::new(),
            debug_console: false,
        }
    }
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            max_layer_mib: 32 * 1024,
            keep_layers_ms: 15 * 60 * 1000,
            credentials_file: PathBuf::new(),
            pinned: Vec::new(),
            mirrors: BTreeMap::new(),
        }
    }
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            config_dirs: vec!["/etc/cni/net.d".into()],
            plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            timeout_ms: 60_000,
        }
    }
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            idle_timeout_ms: 4 * 60 * 60 * 1000,
        }
    }
}

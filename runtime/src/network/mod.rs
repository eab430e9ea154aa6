//! The pods' networks: a named namespace for each sandbox, interfaces in it that CNI plugins make,
//! and a tap beside each interface, whose other end is the guest's.
//!
//! ```text
//!            the node's namespace │ the sandbox's namespace                  │ the guest
//!                                 │              tc                          │
//!  bridge, routes, NAT ── veth ───┼── eth0 <── redirect ──> tap0 ── VMM ─────┼── eth0
//!        (CNI plugins)            │  addresses, routes: read from here ──────┼─> set there
//! ```
//!
//! `sandbox` attaches a pod when it is made, detaches it when it is stopped, and keeps a sandbox that
//! could not be detached until it can be. What a plugin was told is on disk before it runs, so that
//! DEL can follow a crash, a restart and a changed configuration. All methods may be called from any
//! task; one sandbox's do not overlap.
//!
//! ```text
//!            attach                        detach
//!   (none) ─────────> recorded, attached ─────────> (none)
//!                         │      ^  DEL fails │
//!                         │      └────────────┘
//!                         └─ a daemon that starts: check, collect_garbage
//! ```

mod attach;
mod cni;
mod detach;
mod error;
mod link;
mod namespace;
mod pod;
mod pod_cidr;
mod resolver;
mod tap;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use self::attach::{Attached, Nic};
pub(crate) use self::cni::PluginError;
use self::cni::{Attachment, Plugins};
pub(crate) use self::error::NetworkError;
pub(crate) use self::pod::PortMapping;
use self::pod_cidr::PodCidr;
use tokio::sync::RwLock;

use crate::config::CniConfig;
use crate::id::SandboxId;
use crate::record::Records;

/// The pods' networks.
#[derive(Debug)]
pub(crate) struct Networks {
    enabled: bool,
    config_dirs: Vec<PathBuf>,
    plugins: Plugins,
    records: Records,
    pod_cidr: PodCidr,
    /// Held for reading from an attachment's record to the end of its ADD, for writing while what is
    /// recorded is told to be all that there is.
    adding: RwLock<()>,
}

/// Where a sandbox is in the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodNetwork {
    /// Its named namespace.
    pub(crate) netns: PathBuf,
    /// Its addresses, the pod's own first.
    pub(crate) ips: Vec<IpAddr>,
}

impl Networks {
    /// The networks of a node whose records are in `records` and `root_dir`. Blocking.
    ///
    /// # Errors
    ///
    /// When what is recorded of them cannot be read.
    pub(crate) fn open(
        config: &CniConfig,
        root_dir: &Path,
        records: Records,
    ) -> Result<Self, NetworkError> {
        Ok(Self {
            enabled: config.enabled,
            config_dirs: config.config_dirs.clone(),
            plugins: Plugins::new(config),
            records,
            pod_cidr: PodCidr::open(root_dir)?,
            adding: RwLock::default(),
        })
    }

    /// Pods have networks.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Remembers the addresses that the cluster gave the node, for networks that ask for them.
    ///
    /// # Errors
    ///
    /// When it is none, or cannot be recorded.
    pub(crate) async fn set_pod_cidr(&self, text: &str) -> Result<(), NetworkError> {
        self.pod_cidr.set(text).await
    }

    /// Whether a pod would get a network.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] says why not.
    pub(crate) async fn ready(&self) -> Result<(), NetworkError> {
        if !self.enabled {
            return Err(NetworkError::Disabled);
        }
        let network = self.load().await?;
        Ok(self.plugins.status(&network).await?)
    }

    /// What the plugins answered when they attached a sandbox (CNI specification 1.1, section 5,
    /// "ADD Success"); `None` when it is in no network.
    ///
    /// # Errors
    ///
    /// When the record cannot be read.
    pub(crate) async fn result(&self, id: &SandboxId) -> Result<Option<Value>, NetworkError> {
        let attachment = self.records.network::<Attachment>(id).await?;
        Ok(attachment.and_then(|attachment| attachment.result))
    }

    /// Whether a sandbox's network still is as it was made.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] says what is missing.
    pub(crate) async fn check(&self, id: &SandboxId) -> Result<(), NetworkError> {
        match self.records.network::<Attachment>(id).await? {
            Some(attachment) => Ok(self.plugins.check(&attachment).await?),
            None => Ok(()),
        }
    }

    /// Lets the network's plugins throw away what belongs to none of the sandboxes that there are.
    ///
    /// # Errors
    ///
    /// When there is no network, or one of its plugins fails.
    pub(crate) async fn collect_garbage(&self) -> Result<(), NetworkError> {
        if !self.enabled {
            return Ok(());
        }
        let network = self.load().await?;
        let _alone = self.adding.write().await;
        let attachments = self.records.networks().await?;
        Ok(self.plugins.gc(&network, &attachments).await?)
    }

    async fn load(&self) -> Result<cni::Network, NetworkError> {
        let dirs = self.config_dirs.clone();
        let loaded = blocking(move || Ok(cni::Network::load(&dirs))).await?;
        Ok(loaded?)
    }
}

/// The name of the network that pods would join. Blocking.
///
/// # Errors
///
/// When there is none, or one of its plugins is not there.
pub(crate) fn find(config: &CniConfig) -> Result<String, NetworkError> {
    let network = cni::Network::load(&config.config_dirs)?;
    Plugins::new(config).find_all(&network)?;
    Ok(network.name)
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(NetworkError::Interrupted))
}

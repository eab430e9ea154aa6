//! What can go wrong with a pod's network.

use std::io;
use std::path::PathBuf;

use super::cni::{NoNetwork, PluginError, ResultError};
use crate::field::FieldError;
use crate::record::RecordError;

/// A pod has no network, or could not be taken out of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The configuration says that pods have none.
    #[error("pods have a loopback interface only: cni.enabled is false")]
    Disabled,
    /// Nobody configured one.
    #[error("{0} (cni.enabled = false gives pods a loopback interface only)")]
    NoNetwork(#[from] NoNetwork),
    /// A plugin.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// What the plugins answered.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// What the pod asks for.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The plugins left no interface that a guest can have.
    #[error("the network {0:?} made no Ethernet interface that is up")]
    NoInterface(String),
    /// More interfaces than a guest can have.
    #[error("a pod cannot have {0} network interfaces")]
    Interfaces(usize),
    /// An interface whose form makes no sense.
    #[error("the network interface {0:?} has no usable address or MTU")]
    Interface(String),
    /// A namespace, a device, or a file.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A network device.
    #[error("{action} {device}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// On which device.
        device: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The daemon stopped in the middle of it.
    #[error("the work on a network was interrupted")]
    Interrupted,
}

impl NetworkError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(super) fn netlink(
        action: &'static str,
        device: &str,
    ) -> impl FnOnce(rtnetlink::Error) -> Self {
        let device = device.to_owned();
        move |error| Self::Netlink {
            action,
            device,
            source: match error {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other),
            },
        }
    }
}

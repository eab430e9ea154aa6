//! A sandbox on disk.

use serde::{Deserialize, Serialize};

use super::{PodConfig, Sandbox, SandboxState, WantedMemory};
use crate::id::SandboxId;
use crate::network::PodNetwork;
use crate::vm::{ProcessId, VmEnd};

/// What the next daemon must know of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    /// Its identifier, which is also its folder's name.
    pub(crate) id: SandboxId,
    /// How far it got.
    pub(crate) phase: SandboxPhase,
    /// What was asked for.
    pub(crate) config: PodConfig,
    /// The runtime handler.
    pub(crate) handler: String,
    /// When it was asked for, nanoseconds since the epoch.
    pub(crate) created_at_ns: i64,
    /// The VMM's process, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vmm: Option<ProcessId>,
    /// What its guest was asked to have of memory since it was started.
    #[serde(default)]
    pub(crate) memory: WantedMemory,
    /// Where it is in the network, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<PodNetwork>,
    /// How the machine ended, when nobody asked it to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<VmEnd>,
}

/// How far a sandbox got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SandboxPhase {
    /// Being made; nobody has been told of it.
    Starting,
    /// Made, and its machine was last seen running.
    Ready,
    /// Its machine has ended.
    NotReady,
}

impl Sandbox {
    /// The record of the sandbox as it is.
    pub(super) fn to_record(&self) -> SandboxRecord {
        let (phase, end) = match self.state() {
            SandboxState::Ready => (SandboxPhase::Ready, None),
            SandboxState::NotReady { end } => (SandboxPhase::NotReady, end),
        };
        SandboxRecord {
            id: self.id.clone(),
            phase,
            config: self.config.clone(),
            handler: self.handler.clone(),
            created_at_ns: self.created_at_ns,
            vmm: self.vm.as_ref().map(|vm| vm.process_id()),
            memory: self.memory.wanted(),
            network: self.network(),
            end,
        }
    }
}

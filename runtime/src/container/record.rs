//! A container on disk.

use serde::{Deserialize, Serialize};

use super::{Container, ContainerConfig, ContainerExit, ContainerState};
use crate::id::ContainerId;

/// What the next daemon must know of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    /// Its identifier.
    pub(super) id: ContainerId,
    /// How far it got.
    pub(super) phase: ContainerPhase,
    /// What was asked for.
    pub(super) config: ContainerConfig,
    /// When it was asked for, nanoseconds since the epoch.
    pub(super) created_at_ns: i64,
    /// Who its process runs as.
    #[serde(default)]
    pub(super) user: ContainerUser,
}

/// How far a container got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ContainerPhase {
    /// Being made; nobody has been told of it.
    Creating,
    /// Made.
    Created,
    /// Being started, or started: the guest knows.
    Started {
        /// When, nanoseconds since the epoch.
        at_ns: i64,
    },
    /// Ended.
    Exited(ContainerExit),
    /// Being removed.
    Removing,
}

/// Who a container's process runs as, resolved in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerUser {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Further groups.
    pub(crate) groups: Vec<u32>,
}

impl Container {
    /// The record of the container in a phase.
    pub(super) fn to_record(&self, phase: ContainerPhase) -> ContainerRecord {
        ContainerRecord {
            id: self.id.clone(),
            phase,
            config: ContainerConfig {
                resources: self.resources(),
                ..self.config.clone()
            },
            created_at_ns: self.created_at_ns,
            user: self.user.clone(),
        }
    }
}

impl From<&ContainerState> for ContainerPhase {
    fn from(state: &ContainerState) -> Self {
        match state {
            ContainerState::Created => Self::Created,
            ContainerState::Running { started_at_ns } => Self::Started {
                at_ns: *started_at_ns,
            },
            ContainerState::Exited(exit) => Self::Exited(exit.clone()),
        }
    }
}

//! Containers: an image's root file system and a process, in a sandbox's guest.
//!
//! One [`Containers`] holds them all. The CRI's methods call it from their tasks; one task per
//! container waits for its exit.
//!
//! ```text
//!           create            start                  exit, or the machine ends
//!  (making) ──────> CREATED ─────────> RUNNING ──────────────────────────────> EXITED ──> (removed)
//!     │                │  start fails: 128, "StartError"                          ^   remove
//!     │                └──────────────────────────────────────────────────────────┘
//!     └──> undone: no trace
//! ```
//!
//! The record on disk is written before what it says takes effect: `creating` before anything is
//! made, `started` before the process is started, `removing` before anything is removed. The guest
//! is what decides after a crash (`recover`). An exit is visible once the container's output is in
//! its log and the exit in its record.
//!
//! Verbs that change one container hold its lock; stopping does not, because it waits. Log output
//! never comes through here: the VMM writes it.

mod attach;
mod config;
mod create;
mod device;
mod error;
mod exec;
mod exec_sync;
mod log;
mod mount;
mod record;
mod recover;
mod remove;
mod signal;
mod spec;
mod start;
mod state;
mod stop;
mod update;
mod watch;

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub(crate) use self::config::{ContainerConfig, Resources};
pub(crate) use self::error::ContainerError;
pub(crate) use self::exec::ExecRequest;
pub(crate) use self::mount::Mount;
use self::record::ContainerPhase;
pub(crate) use self::record::ContainerUser;
pub(crate) use self::signal::Signal;
pub(crate) use self::state::{ContainerExit, ContainerState};
use crate::config::ImageDevice;
use crate::events::{EventKind, Events};
use crate::id::{ContainerId, SandboxId};
use crate::image::ImageStore;
use crate::record::Records;
use crate::sandbox::Sandbox;
use crate::stats::CpuRate;
use crate::table::{Names, Reservation, Table};

/// Length of a disk's serial number (virtio 1.2 section 5.2.6.1).
const SERIAL_LEN: usize = 20;

/// Every container of this node.
#[derive(Debug)]
pub(crate) struct Containers {
    images: ImageStore,
    image_device: ImageDevice,
    records: Records,
    events: Arc<Events>,
    table: Table<Container>,
    names: Names,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its identifier.
    pub(crate) id: ContainerId,
    /// What was asked for.
    pub(crate) config: ContainerConfig,
    /// The sandbox that it is in.
    pub(crate) sandbox: Arc<Sandbox>,
    /// When, in nanoseconds since the epoch.
    pub(crate) created_at_ns: i64,
    /// Who its process runs as.
    pub(crate) user: ContainerUser,
    /// What it uses of processors, from one look to the next.
    pub(crate) cpu_rate: CpuRate,
    /// Its limits as they are now.
    resources: Mutex<Resources>,
    state: tokio::sync::watch::Sender<ContainerState>,
    verbs: tokio::sync::Mutex<Removed>,
    removed: CancellationToken,
    name: Mutex<Option<Reservation>>,
}

/// Whether the container is gone, and its record must not be written again.
#[derive(Debug, Default)]
struct Removed(bool);

impl Containers {
    /// No containers yet: [`recover`](Self::recover) finds those of an earlier daemon.
    pub(crate) fn new(
        images: ImageStore,
        image_device: ImageDevice,
        records: Records,
        events: Arc<Events>,
    ) -> Self {
        Self {
            images,
            image_device,
            records,
            events,
            table: Table::default(),
            names: Names::default(),
        }
    }

    /// The container that an id, or a unique beginning of one, stands for.
    ///
    /// # Errors
    ///
    /// When none or several do.
    pub(crate) fn find(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        Ok(self.table.find(id)?)
    }

    /// Every container, by id.
    pub(crate) fn list(&self) -> Vec<Arc<Container>> {
        self.table.list()
    }

    /// The containers of a sandbox.
    pub(crate) fn of_sandbox(&self, id: &SandboxId) -> Vec<Arc<Container>> {
        let mut containers = self.list();
        containers.retain(|container| container.sandbox.id == *id);
        containers
    }

    /// Makes a container known.
    fn add(&self, container: &Arc<Container>) {
        self.table
            .insert(container.id.as_str(), Arc::clone(container));
    }

    /// Tells that something happened to the container.
    fn publish(&self, kind: EventKind, container: &Container) {
        self.events
            .publish(kind, container.id.as_str(), &container.sandbox);
    }

    /// The OCI spec that the guest was asked to make a container from.
    ///
    /// # Errors
    ///
    /// When it is not on disk any more.
    pub(crate) async fn spec(&self, container: &Container) -> Result<Value, ContainerError> {
        let (sandbox, id) = (&container.sandbox.id, &container.id);
        Ok(self.records.spec(sandbox, id).await?)
    }

    /// Writes the container's record as it is.
    async fn save(
        &self,
        container: &Container,
        phase: ContainerPhase,
    ) -> Result<(), ContainerError> {
        let record = container.to_record(phase);
        Ok(self
            .records
            .save_container(&container.sandbox.id, &container.id, &record)
            .await?)
    }
}

impl Container {
    /// Where it is in its life.
    pub(crate) fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    /// Its limits as they are now.
    pub(crate) fn resources(&self) -> Resources {
        let held = self.resources.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_resources(&self, resources: Resources) {
        let held = self.resources.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = resources;
    }

    /// Serial number of its root disk.
    fn serial(&self) -> &str {
        serial(&self.id)
    }

    fn release_name(&self) {
        self.name
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    /// The container's state does not allow `verb`.
    pub(crate) fn wrong_state(&self, verb: &'static str) -> ContainerError {
        ContainerError::State {
            id: self.id.to_string(),
            state: self.state().name(),
            verb,
        }
    }
}

/// Serial number of a container's root disk: 80 bits of its id, more than two containers of one
/// sandbox will ever share.
fn serial(id: &ContainerId) -> &str {
    id.as_str().get(..SERIAL_LEN).unwrap_or_default()
}

/// What no two containers of a sandbox may have in common.
fn full_name(sandbox: &SandboxId, config: &ContainerConfig) -> String {
    format!("{}_{}_{sandbox}", config.name, config.attempt)
}

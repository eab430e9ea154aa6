//! What a daemon that starts does with the containers of an earlier one.
//!
//! ```text
//!  record      guest            becomes
//!  creating    any              undone
//!  created     any              CREATED; EXITED when the machine has ended
//!  started     not started yet  CREATED: the start never took effect
//!  started     known            RUNNING, waited for; the exit code comes from the guest
//!  started     not known        EXITED, 255, "Unknown"
//!  started     machine ended    EXITED, 137
//!  exited      any              EXITED
//!  removing    any              removed
//!  none        known            deleted in the guest
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::record::{ContainerPhase, ContainerRecord};
use super::remove::remove_from_guest;
use super::{
    Container, ContainerConfig, ContainerError, ContainerExit, ContainerState, Containers, Removed,
    full_name,
};
use crate::chain::chain;
use crate::id::ContainerId;
use crate::sandbox::{Sandbox, SandboxState};
use crate::stats::CpuRate;
use crate::vm::{EndReason, Vm, VmEnd};

/// How long the guest may take to list its containers before the daemon goes on without.
const LIST_LIMIT: Duration = Duration::from_secs(5);

impl Containers {
    /// Finds a recovered sandbox's containers, and finishes or undoes what was left half done.
    ///
    /// # Errors
    ///
    /// When the records cannot be read.
    pub(crate) async fn recover(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
    ) -> Result<(), ContainerError> {
        let (records, id) = (self.records.clone(), sandbox.id.clone());
        let read = tokio::task::spawn_blocking(move || records.containers(&id)).await;
        let found: Vec<ContainerRecord> = read.map_err(|error| {
            ContainerError::io("reading the records of", sandbox.id.as_str())(
                std::io::Error::other(error),
            )
        })??;
        let vm = sandbox.running_vm().ok();
        let guest = match &vm {
            Some(vm) => list(vm, sandbox).await,
            None => None,
        };
        let mut kept = BTreeSet::new();
        for record in found {
            let id = record.id.clone();
            match self
                .recover_one(sandbox, record, guest.as_ref(), vm.as_deref())
                .await
            {
                Ok(true) => {
                    kept.insert(id);
                }
                Ok(false) => {}
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(container_id = %id, error, "could not recover a container");
                    kept.insert(id);
                }
            }
        }
        if let Some(vm) = &vm
            && let Err(error) = sandbox.volumes.remove_unused(vm).await
        {
            let error = chain(&error);
            tracing::warn!(sandbox_id = %sandbox.id, error, "could not remove unused volumes");
        }
        if let (Some(vm), Some(guest)) = (&vm, &guest) {
            for id in guest.keys().filter(|id| !kept.contains(*id)) {
                tracing::warn!(container_id = %id, "removing a container without a record");
                clear_guest(vm, id, None).await;
            }
        }
        Ok(())
    }

    /// Whether the container stays.
    async fn recover_one(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        record: ContainerRecord,
        guest: Option<&BTreeMap<ContainerId, bool>>,
        vm: Option<&Vm>,
    ) -> Result<bool, ContainerError> {
        let started_in_guest = guest.and_then(|guest| guest.get(&record.id).copied());
        let state = match record.phase.clone() {
            ContainerPhase::Creating | ContainerPhase::Removing => {
                tracing::info!(container_id = %record.id, "removing a half-made container");
                if let Some(vm) = vm {
                    clear_guest(vm, &record.id, Some(&record.config)).await;
                }
                self.records
                    .forget_container(&sandbox.id, &record.id)
                    .await?;
                return Ok(false);
            }
            ContainerPhase::Exited(exit) => ContainerState::Exited(exit),
            ContainerPhase::Created if vm.is_some() => ContainerState::Created,
            ContainerPhase::Started { .. } if started_in_guest == Some(false) => {
                ContainerState::Created
            }
            // Also when the guest does not know it: waiting for it then says so.
            ContainerPhase::Started { at_ns } if vm.is_some() => ContainerState::Running {
                started_at_ns: at_ns,
            },
            ContainerPhase::Created => {
                ContainerState::Exited(ContainerExit::of_machine(0, &machine_end(sandbox)))
            }
            ContainerPhase::Started { at_ns } => {
                ContainerState::Exited(ContainerExit::of_machine(at_ns, &machine_end(sandbox)))
            }
        };
        let volumes = record.config.volumes();
        let machine = sandbox.running_vm().ok();
        let user = record.id.as_str();
        sandbox.volumes.adopt(machine.as_ref(), user, volumes).await;
        let set = record.config.resources.processors();
        sandbox.processors.adopt(record.id.as_str(), set).await;
        let name = self
            .names
            .reserve(full_name(&sandbox.id, &record.config), record.id.as_str())?;
        let changed = ContainerPhase::from(&state) != record.phase;
        let container = Arc::new(Container {
            id: record.id,
            resources: std::sync::Mutex::new(record.config.resources.clone()),
            config: record.config,
            sandbox: Arc::clone(sandbox),
            created_at_ns: record.created_at_ns,
            user: record.user,
            cpu_rate: CpuRate::default(),
            state: tokio::sync::watch::Sender::new(state.clone()),
            verbs: tokio::sync::Mutex::new(Removed::default()),
            removed: CancellationToken::new(),
            name: std::sync::Mutex::new(Some(name)),
        });
        if changed {
            self.save(&container, ContainerPhase::from(&state)).await?;
        }
        self.add(&container);
        self.watch(container);
        Ok(true)
    }
}

/// The guest's containers and whether each was started; `None` when it does not say.
async fn list(vm: &Vm, sandbox: &Sandbox) -> Option<BTreeMap<ContainerId, bool>> {
    match tokio::time::timeout(LIST_LIMIT, vm.containers()).await {
        Ok(Ok(containers)) => Some(containers),
        Ok(Err(error)) => {
            let error = chain(&error);
            tracing::warn!(sandbox_id = %sandbox.id, error, "the guest does not list its containers");
            None
        }
        Err(_elapsed) => {
            tracing::warn!(sandbox_id = %sandbox.id, "the guest is slow to list its containers");
            None
        }
    }
}

/// As far as it goes: what stays behind goes with the sandbox.
async fn clear_guest(vm: &Vm, id: &ContainerId, config: Option<&ContainerConfig>) {
    if let Err(error) = remove_from_guest(vm, id, config).await {
        let error = chain(&error);
        tracing::warn!(container_id = %id, error, "could not remove a container from the guest");
    }
}

fn machine_end(sandbox: &Sandbox) -> VmEnd {
    let known = match sandbox.state() {
        SandboxState::NotReady { end } => end,
        SandboxState::Ready => None,
    };
    known.unwrap_or_else(|| VmEnd {
        reason: EndReason::ShutDown,
        message: String::new(),
        at_ns: crate::clock::now_ns(),
    })
}

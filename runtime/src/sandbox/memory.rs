//! How much memory a sandbox's guest has while it runs.
//!
//! A guest is started with what its pod asks for then, which it keeps. When the pod's limits change, or
//! those of its containers, it is asked by virtio-mem to have more beside that, or less again: as much
//! as the larger of the two needs. A guest that grows has all of it before a limit goes up; one that
//! shrinks gives back what it can, and goes on trying.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::MutexGuard;

use super::{PodConfig, SandboxError, size};
use crate::chain::chain;
use crate::config::VmConfig;
use crate::field::FieldError;
use crate::id::SandboxId;
use crate::vm::Vm;

/// How long a guest may be without progress before what it has is all for now: longer than it takes to
/// move what is in one of its kernel's blocks of memory out of it, and less than a sandbox that is
/// stopped waits.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a guest plugs and unplugs (`vmm.proto`), in MiB.
const BLOCK_MIB: u32 = 2;

/// Sizes that a guest is asked to have since it was started, in MiB; 0: that was enough.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WantedMemory {
    /// For the pod's limit.
    pub(crate) pod_mib: u32,
    /// For the limits of its containers together.
    pub(crate) containers_mib: u32,
}

impl WantedMemory {
    fn mib(self) -> u32 {
        self.pod_mib.max(self.containers_mib)
    }
}

/// The memory of one sandbox's guest.
#[derive(Debug)]
pub(crate) struct Memory {
    id: SandboxId,
    /// What the guest was started with.
    started_mib: u32,
    overhead_mib: u32,
    /// Least for a pod that says nothing of its overhead.
    least_mib: u32,
    max_mib: u32,
    wanted: Mutex<WantedMemory>,
    turn: tokio::sync::Mutex<()>,
}

/// Leave to change it: nobody else does meanwhile.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    memory: &'a Memory,
    _alone: MutexGuard<'a, ()>,
}

impl Memory {
    /// That of a sandbox whose guest was asked to have `wanted`.
    pub(super) fn new(
        id: &SandboxId,
        pod: &PodConfig,
        wanted: WantedMemory,
        config: &VmConfig,
    ) -> Self {
        Self {
            id: id.clone(),
            started_mib: pod.size.memory_mib,
            overhead_mib: pod.overhead_mib,
            least_mib: config.memory_mib,
            max_mib: size::max_memory_mib(config.max_memory_mib),
            wanted: Mutex::new(wanted),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// For the record.
    pub(super) fn wanted(&self) -> WantedMemory {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody changes it.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        Turn {
            memory: self,
            _alone: self.turn.lock().await,
        }
    }

    /// What a guest is asked to have beside what it was started with.
    fn added_mib(&self, wanted: WantedMemory) -> u32 {
        let added = wanted.mib().saturating_sub(self.started_mib);
        added.next_multiple_of(BLOCK_MIB)
    }

    fn guest_mib(&self, limit_mib: u32, overhead_mib: u32) -> u32 {
        size::memory_mib(limit_mib, overhead_mib, self.least_mib)
    }
}

impl Turn<'_> {
    /// What is wanted when the pod's limit becomes `limit_mib`.
    pub(super) fn for_pod(&self, limit_mib: u32, overhead_mib: u32) -> WantedMemory {
        WantedMemory {
            pod_mib: self.memory.guest_mib(limit_mib, overhead_mib),
            ..self.wanted()
        }
    }

    /// What is wanted when the limits of all containers together become `limit_mib`.
    pub(crate) fn for_containers(&self, limit_mib: u32) -> WantedMemory {
        WantedMemory {
            containers_mib: self.memory.guest_mib(limit_mib, self.memory.overhead_mib),
            ..self.wanted()
        }
    }

    /// What is wanted so far.
    pub(crate) fn wanted(&self) -> WantedMemory {
        self.memory.wanted()
    }

    /// Lets the guest grow until it has what is `wanted`; nothing changes when it has. `field` is who
    /// asks.
    ///
    /// # Errors
    ///
    /// When that is more than a guest may have, or the guest does not grow; then it is asked to have
    /// what it had.
    pub(crate) async fn grow(
        &self,
        vm: &Vm,
        wanted: WantedMemory,
        field: &str,
    ) -> Result<(), SandboxError> {
        let memory = self.memory;
        let before = self.wanted();
        if memory.added_mib(wanted) <= memory.added_mib(before) {
            return Ok(());
        }
        if wanted.mib() > memory.max_mib {
            let reason = format!(
                "needs a virtual machine of {} MiB, and none grows beyond {} MiB \
                 (`vm.max_memory_mib` in the daemon's configuration, which is the host's memory by \
                 default)",
                wanted.mib(),
                memory.max_mib
            );
            return Err(FieldError::new(field, reason).into());
        }
        let added_mib = memory.added_mib(wanted);
        match self.grow_by(vm, added_mib).await {
            Ok(()) => {
                self.note(wanted);
                Ok(())
            }
            Err(error) => {
                self.shrink_to(vm, memory.added_mib(before)).await;
                Err(error)
            }
        }
    }

    async fn grow_by(&self, vm: &Vm, added_mib: u32) -> Result<(), SandboxError> {
        vm.resize_memory(added_mib).await?;
        vm.use_memory().await?;
        let plugged_mib = vm.wait_memory(PATIENCE).await?;
        if plugged_mib < added_mib {
            return Err(SandboxError::NotGrown {
                started_mib: self.memory.started_mib,
                added_mib,
                plugged_mib,
            });
        }
        tracing::info!(sandbox_id = %self.memory.id, added_mib, "the guest has grown");
        Ok(())
    }

    /// Lets the guest shrink to what is `wanted`, as far as it can, and remembers that. It never has
    /// less than it was started with.
    pub(crate) async fn settle(&self, vm: &Vm, wanted: WantedMemory) {
        let memory = self.memory;
        let added_mib = memory.added_mib(wanted);
        if added_mib < memory.added_mib(self.wanted()) {
            self.shrink_to(vm, added_mib).await;
        }
        self.note(wanted);
    }

    /// Goes back to what was wanted `before`, as far as the guest can.
    pub(crate) async fn restore(&self, vm: &Vm, before: WantedMemory) {
        if let Err(error) = self.grow(vm, before, "").await {
            let (sandbox_id, error) = (&self.memory.id, chain(&error));
            tracing::warn!(%sandbox_id, error, "the guest has less memory than it had");
        }
        self.settle(vm, before).await;
    }

    /// How much the guest is to give back of what it was asked to have, in MiB.
    pub(super) fn gives_back_mib(&self, wanted: WantedMemory) -> u32 {
        let (before, after) = (self.wanted(), wanted);
        let memory = self.memory;
        memory
            .added_mib(before)
            .saturating_sub(memory.added_mib(after))
    }

    async fn shrink_to(&self, vm: &Vm, added_mib: u32) {
        let sandbox_id = &self.memory.id;
        let shrunk = async {
            vm.resize_memory(added_mib).await?;
            vm.wait_memory(PATIENCE).await
        };
        match shrunk.await {
            Ok(plugged_mib) if plugged_mib <= added_mib => {
                tracing::info!(%sandbox_id, added_mib, "the guest has shrunk");
            }
            Ok(plugged_mib) => tracing::warn!(
                %sandbox_id,
                added_mib,
                plugged_mib,
                "the guest uses memory that it is to give back, and keeps it until it can"
            ),
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%sandbox_id, added_mib, error, "the guest was not seen to shrink");
            }
        }
    }

    fn note(&self, wanted: WantedMemory) {
        let held = self.memory.wanted.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = wanted;
    }
}

//! Changes what a pod may use while it runs.

use std::sync::Arc;

use isopod_proto::cri;

use super::memory::{Turn, WantedMemory};
use super::{Sandbox, SandboxError, Sandboxes, size};
use crate::field::FieldError;
use crate::vm::Vm;

/// What asks for a larger guest.
const MEMORY_LIMIT: &str = "resources.memory_limit_in_bytes";

impl Sandboxes {
    /// Gives the guest as many processors as a CPU limit can keep busy, and as much memory as a memory
    /// limit needs, but never less than it was started with. What is not limited stays as it is. All
    /// of it is done, or the guest is left as it was.
    ///
    /// # Errors
    ///
    /// When no guest, or not this one, can have what the limits ask for, it holds more than they leave
    /// it, or it does not answer.
    #[tracing::instrument(skip_all, fields(sandbox_id = %sandbox.id))]
    pub(crate) async fn resize(
        &self,
        sandbox: &Sandbox,
        resources: &cri::LinuxContainerResources,
        overhead: Option<&cri::LinuxContainerResources>,
    ) -> Result<(), SandboxError> {
        let has = sandbox.config.size;
        let vcpus = size::vcpus(resources);
        if vcpus > has.max_vcpus {
            let reason = format!(
                "needs {vcpus} processors; this virtual machine has {}",
                has.max_vcpus
            );
            return Err(FieldError::new("resources.cpu_quota", reason).into());
        }
        // Without a limit, all of them.
        let vcpus = if vcpus == 0 { has.max_vcpus } else { vcpus };
        let limit = Limit {
            // A kubelet says -1, or less, of a pod without a limit.
            memory_mib: size::mebibytes(resources.memory_limit_in_bytes),
            overhead_mib: match size::overhead_mib(overhead) {
                0 => sandbox.config.overhead_mib,
                told => told,
            },
        };
        let admission = sandbox.admit().await?;
        let turn = sandbox.memory.turn().await;
        let before = turn.wanted();
        let wanted = match limit.memory_mib {
            0 => before,
            limit_mib => turn.for_pod(limit_mib, limit.overhead_mib),
        };
        self.set_memory(sandbox, (&turn, &admission.vm), wanted, limit)
            .await?;
        if let Err(error) = admission.vm.set_processors(vcpus).await {
            turn.restore(&admission.vm, before).await;
            return Err(error.into());
        }
        match wanted == before {
            true => Ok(()),
            false => sandbox.save(&self.records).await,
        }
    }

    /// Has the guest grow or shrink. Whoever lowers the limit of the pod's cgroup next is told if that
    /// would end the guest.
    async fn set_memory(
        &self,
        sandbox: &Sandbox,
        (turn, vm): (&Turn<'_>, &Vm),
        wanted: WantedMemory,
        limit: Limit,
    ) -> Result<(), SandboxError> {
        let before = turn.wanted();
        let gives_back = turn.gives_back_mib(wanted);
        self.check_held(sandbox, limit, gives_back).await?;
        turn.grow(vm, wanted, MEMORY_LIMIT).await?;
        turn.settle(vm, wanted).await;
        if gives_back == 0 {
            return Ok(());
        }
        // It may not have given back all.
        let checked = self.check_held(sandbox, limit, 0).await;
        if checked.is_err() {
            turn.restore(vm, before).await;
        }
        checked
    }

    /// Whether the sandbox fits in a limit that its cgroup has not got yet, once it has given back so
    /// much.
    async fn check_held(
        &self,
        sandbox: &Sandbox,
        limit: Limit,
        gives_back_mib: u32,
    ) -> Result<(), SandboxError> {
        let (cgroups, id) = (Arc::clone(&self.cgroups), sandbox.id.clone());
        let parent = sandbox.config.cgroup_parent.clone();
        let held = tokio::task::spawn_blocking(move || cgroups.held(&parent, &id)).await;
        let Ok(Some(held)) = held else {
            return Ok(());
        };
        let limit_mib = u64::from(limit.memory_mib) + u64::from(limit.overhead_mib);
        let is_lowered = limit.memory_mib > 0 && limit_mib << 20 < held.max_bytes;
        let held_mib = (held.bytes >> 20).saturating_sub(gives_back_mib.into());
        match is_lowered && held_mib > limit_mib {
            true => Err(SandboxError::Held {
                held_mib,
                limit_mib,
            }),
            false => Ok(()),
        }
    }
}

/// What a pod is limited to, in MiB; 0: nothing.
#[derive(Debug, Clone, Copy)]
struct Limit {
    memory_mib: u32,
    overhead_mib: u32,
}

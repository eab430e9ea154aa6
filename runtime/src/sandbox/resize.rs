//! Changes what a pod may use while it runs.

use isopod_proto::cri;

use super::{Sandbox, SandboxError, Sandboxes, size};
use crate::field::FieldError;

impl Sandboxes {
    /// Gives the guest as many processors as a CPU limit can keep busy, and as much memory as a memory
    /// limit needs, but never less than it was started with. What is not limited stays as it is. All
    /// of it is done, or the guest is left as it was.
    ///
    /// # Errors
    ///
    /// When no guest, or not this one, can have what the limits ask for, or it does not answer.
    #[tracing::instrument(skip_all, fields(sandbox_id = %sandbox.id))]
    pub(crate) async fn resize(
        &self,
        sandbox: &Sandbox,
        resources: &cri::LinuxContainerResources,
        overhead: Option<&cri::LinuxContainerResources>,
    ) -> Result<(), SandboxError> {
        let field = "resources.memory_limit_in_bytes";
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
        let admission = sandbox.admit().await?;
        let turn = sandbox.memory.turn().await;
        let before = turn.wanted();
        // A kubelet says -1, or less, of a pod without a limit.
        let wanted = match size::mebibytes(resources.memory_limit_in_bytes) {
            0 => before,
            limit_mib => turn.for_pod(limit_mib, size::overhead_mib(overhead)),
        };
        turn.grow(&admission.vm, wanted, field).await?;
        if let Err(error) = admission.vm.set_processors(vcpus).await {
            turn.settle(&admission.vm, before).await;
            return Err(error.into());
        }
        turn.settle(&admission.vm, wanted).await;
        match wanted == before {
            true => Ok(()),
            false => sandbox.save(&self.records).await,
        }
    }
}

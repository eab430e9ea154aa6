//! Changes what a pod may use while it runs.

use isopod_proto::cri;

use super::{Sandbox, SandboxError, size};
use crate::field::FieldError;

impl Sandbox {
    /// Brings processors of the guest up or takes them down, so that a CPU limit has as many as it
    /// can keep busy. Memory is what the guest was started with: a limit that fits in it needs no
    /// change, and a larger one is refused.
    ///
    /// # Errors
    ///
    /// When the guest is too small for the limits, or does not answer.
    #[tracing::instrument(skip_all, fields(sandbox_id = %self.id))]
    pub(crate) async fn resize(
        &self,
        resources: &cri::LinuxContainerResources,
    ) -> Result<(), SandboxError> {
        let (has, wanted_mib) = (self.config.size, size::memory_mib(resources));
        if wanted_mib > has.memory_mib {
            let reason = format!(
                "needs a virtual machine of {wanted_mib} MiB; this one has {} MiB, and does not \
                 grow while it runs",
                has.memory_mib
            );
            return Err(FieldError::new("resources.memory_limit_in_bytes", reason).into());
        }
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
        let admission = self.admit().await?;
        Ok(admission.vm.set_processors(vcpus).await?)
    }
}

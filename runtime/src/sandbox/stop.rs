//! Ends a sandbox's machine.

use std::sync::{Arc, PoisonError};

use super::{Sandbox, SandboxError, Sandboxes, remove_cgroup};

impl Sandboxes {
    /// Ends the machine, gives its cgroup and disk space back and leaves the network; the sandbox
    /// stays known. Its containers have been stopped, and it has been [closed](Sandbox::close).
    /// Idempotent.
    ///
    /// # Errors
    ///
    /// When the machine cannot be ended, files not be removed, or the network not be left. Whatever
    /// is left is tried again by the next call.
    pub(crate) async fn stop(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        if let Some(vm) = sandbox.vm() {
            vm.end().await?;
            let end = vm.ended().await;
            self.machine_ended(sandbox, end).await;
        }
        let (cgroups, parent) = (
            Arc::clone(&self.cgroups),
            sandbox.config.cgroup_parent.clone(),
        );
        remove_cgroup(cgroups, parent, sandbox.id.clone()).await?;
        self.records.remove_scratch(&sandbox.id).await?;
        self.networks.detach(&sandbox.id).await?;
        let left = sandbox
            .network
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if left.is_some() {
            sandbox.save(&self.records).await?;
        }
        Ok(())
    }
}

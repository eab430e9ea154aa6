//! Ends a sandbox's machine.

use super::{Sandbox, SandboxError, Sandboxes};

impl Sandboxes {
    /// Ends the machine and gives its disk space back; the sandbox stays known. Its containers have
    /// been stopped, and it has been [closed](Sandbox::close). Idempotent.
    ///
    /// # Errors
    ///
    /// When the machine cannot be ended, or files not be removed.
    pub(crate) async fn stop(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        if let Some(vm) = sandbox.vm() {
            vm.end().await?;
            let end = vm.ended().await;
            self.machine_ended(sandbox, end).await;
        }
        Ok(self.records.remove_scratch(&sandbox.id).await?)
    }
}

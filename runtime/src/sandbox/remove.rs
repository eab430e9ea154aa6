//! Makes a sandbox disappear.

use super::{Sandbox, SandboxError, Sandboxes, remove_dir};
use crate::events::EventKind;

impl Sandboxes {
    /// Removes everything that is left of a stopped sandbox, its record last. Idempotent; its
    /// containers have been removed.
    ///
    /// # Errors
    ///
    /// When a file cannot be removed; the sandbox is then still known.
    pub(crate) async fn remove(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let mut record = sandbox.record.lock().await;
        remove_dir(self.state_dir(&sandbox.id)).await?;
        self.records.forget_sandbox(&sandbox.id).await?;
        record.0 = true;
        self.table.remove(sandbox.id.as_str());
        sandbox.release_name();
        self.publish(EventKind::Deleted, sandbox);
        Ok(())
    }
}

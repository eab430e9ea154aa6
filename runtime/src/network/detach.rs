//! Takes a sandbox out of its network.

use super::cni::Attachment;
use super::namespace::Namespace;
use super::{NetworkError, Networks, blocking};
use crate::id::SandboxId;

impl Networks {
    /// Has the plugins detach the sandbox, whatever is configured by now, and removes its namespace,
    /// with which its taps go. Idempotent. What has failed is still recorded, and can be tried again.
    ///
    /// # Errors
    ///
    /// When a plugin or the kernel refuses.
    #[tracing::instrument(level = "debug", skip_all)]
    pub(crate) async fn detach(&self, id: &SandboxId) -> Result<(), NetworkError> {
        let Some(attachment) = self.records.network::<Attachment>(id).await? else {
            return Ok(());
        };
        let namespace = Namespace::at(&attachment.netns);
        let there = namespace.clone();
        let exists = blocking(move || Ok(there.exists())).await?;
        // A reboot took it away: plugins then clean up what is not in it.
        let netns = exists.then_some(namespace.path());
        self.plugins.del(&attachment, netns).await?;
        blocking(move || namespace.remove()).await?;
        Ok(self.records.forget_network(id).await?)
    }
}

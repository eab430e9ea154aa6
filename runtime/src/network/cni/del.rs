//! DEL: a sandbox leaves a network.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::{Attachment, PluginError, Plugins};

impl Plugins {
    /// Runs the plugins in the opposite order. `netns` is `None` when the namespace is gone. Plugins
    /// must take it that there is nothing to delete, so this can be repeated.
    ///
    /// # Errors
    ///
    /// [`PluginError`] of the first plugin that fails; those behind it were not run.
    pub(crate) async fn del(
        &self,
        attachment: &Attachment,
        netns: Option<&Path>,
    ) -> Result<(), PluginError> {
        // What was begun is brought to its end.
        let never = CancellationToken::new();
        let call = attachment.call("DEL", netns, &never);
        let tells_result = attachment.network.version.has_check();
        for plugin in attachment.network.plugins.iter().rev() {
            let previous = attachment.result.clone().filter(|_| tells_result);
            let config = attachment.config_of(plugin, previous);
            self.run(plugin, &config, &call).await?;
        }
        Ok(())
    }
}

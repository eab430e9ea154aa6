//! CHECK: whether a sandbox's network is as it was made.

use tokio_util::sync::CancellationToken;

use super::{Attachment, PluginError, Plugins};

impl Plugins {
    /// Runs the plugins in order. Nothing is done where the network has no CHECK, or must not be
    /// asked.
    ///
    /// # Errors
    ///
    /// [`PluginError`] of the first plugin that misses something.
    pub(crate) async fn check(&self, attachment: &Attachment) -> Result<(), PluginError> {
        let network = &attachment.network;
        if !network.version.has_check() || network.disable_check {
            return Ok(());
        }
        let never = CancellationToken::new();
        let call = attachment.call("CHECK", Some(&attachment.netns), &never);
        for plugin in &network.plugins {
            let config = attachment.config_of(plugin, attachment.result.clone());
            self.run(plugin, &config, &call).await?;
        }
        Ok(())
    }
}

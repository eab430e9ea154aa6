//! STATUS: whether a network would take a sandbox.

use tokio_util::sync::CancellationToken;

use super::invoke::Call;
use super::{Network, PluginError, Plugins};

impl Plugins {
    /// Asks the plugins in order. Networks of versions before 1.1 are taken to be ready when their
    /// plugins are there.
    ///
    /// # Errors
    ///
    /// [`PluginError`] of the first plugin that is missing or not ready.
    pub(crate) async fn status(&self, network: &Network) -> Result<(), PluginError> {
        let never = CancellationToken::new();
        let call = Call {
            verb: "STATUS",
            parameters: Vec::new(),
            cancel: &never,
        };
        for plugin in &network.plugins {
            if network.version.has_status() {
                let config = network.config_of(plugin, []);
                self.run(plugin, &config, &call).await?;
            } else {
                self.find(&plugin.kind)?;
            }
        }
        Ok(())
    }

    /// Looks for the programs of all plugins, before any of them does something.
    ///
    /// # Errors
    ///
    /// [`PluginError::Missing`].
    pub(crate) fn find_all(&self, network: &Network) -> Result<(), PluginError> {
        let mut plugins = network.plugins.iter();
        plugins.try_for_each(|plugin| self.find(&plugin.kind).map(drop))
    }
}

//! GC: what no sandbox needs any more goes.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::invoke::Call;
use super::{Attachment, Network, PluginError, Plugins};

impl Plugins {
    /// Tells the plugins which attachments there are; all others go. Nothing is done where the
    /// network has no GC, or is shared with somebody whose attachments are not known here.
    ///
    /// # Errors
    ///
    /// [`PluginError`] of the first plugin that failed; the others were run all the same.
    pub(crate) async fn gc(
        &self,
        network: &Network,
        valid: &[Attachment],
    ) -> Result<(), PluginError> {
        if !network.version.has_status() || network.disable_gc {
            return Ok(());
        }
        let never = CancellationToken::new();
        let call = Call {
            verb: "GC",
            parameters: Vec::new(),
            cancel: &never,
        };
        let valid: Value = valid
            .iter()
            .filter(|attachment| attachment.network.name == network.name)
            .map(|one| json!({ "containerID": one.container_id, "ifname": one.interface }))
            .collect();
        let mut first = Ok(());
        for plugin in &network.plugins {
            let more = [("cni.dev/valid-attachments", Some(valid.clone()))];
            let config = network.config_of(plugin, more);
            let done = self.run(plugin, &config, &call).await.map(drop);
            first = first.and(done);
        }
        first
    }
}

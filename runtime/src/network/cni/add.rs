//! ADD: a sandbox joins a network.

use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{Attachment, PluginError, Plugins};

impl Plugins {
    /// Runs the plugins in order, each with the result of the one before it; the last one's result.
    /// When it fails, or is cancelled, DEL must follow.
    ///
    /// # Errors
    ///
    /// [`PluginError`] of the first plugin that fails.
    pub(crate) async fn add(
        &self,
        attachment: &Attachment,
        cancel: &CancellationToken,
    ) -> Result<Value, PluginError> {
        const VERB: &str = "ADD";
        let call = attachment.call(VERB, Some(&attachment.netns), cancel);
        let mut result = None;
        for plugin in &attachment.network.plugins {
            let config = attachment.config_of(plugin, result.take());
            let answer = self.run(plugin, &config, &call).await?;
            let answer = serde_json::from_slice::<Map<String, Value>>(&answer);
            let answer = answer.map_err(|source| PluginError::Answer {
                plugin: plugin.kind.clone(),
                verb: VERB,
                source,
            })?;
            result = Some(Value::Object(answer));
        }
        Ok(result.unwrap_or_default())
    }
}

//! One sandbox in one network, and what is remembered of it: enough to take it out again whatever has
//! been reconfigured since.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::invoke::Call;
use super::list::{Network, Plugin};

/// A sandbox in a network, or about to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// The network as it was configured at ADD.
    pub(crate) network: Network,
    /// `CNI_CONTAINERID`.
    pub(crate) container_id: String,
    /// The named network namespace.
    pub(crate) netns: PathBuf,
    /// The interface's name in it.
    pub(crate) interface: String,
    /// `CNI_ARGS`, in order.
    pub(crate) args: Vec<(String, String)>,
    /// Arguments for capabilities, for plugins that take them.
    pub(crate) capabilities: BTreeMap<String, Value>,
    /// What ADD answered; `None` until it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Value>,
}

impl Attachment {
    /// A call about this attachment.
    pub(super) fn call<'a>(
        &self,
        verb: &'static str,
        netns: Option<&Path>,
        cancel: &'a CancellationToken,
    ) -> Call<'a> {
        let args: Vec<_> = self
            .args
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let netns = netns.map(|netns| netns.display().to_string());
        Call {
            verb,
            parameters: vec![
                ("CNI_CONTAINERID", self.container_id.clone()),
                ("CNI_NETNS", netns.unwrap_or_default()),
                ("CNI_IFNAME", self.interface.clone()),
                ("CNI_ARGS", args.join(";")),
            ],
            cancel,
        }
    }

    /// What a plugin reads.
    pub(super) fn config_of(&self, plugin: &Plugin, previous: Option<Value>) -> Value {
        let arguments: Map<String, Value> = self
            .capabilities
            .iter()
            .filter(|(name, _)| plugin.capabilities.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let runtime_config = (!arguments.is_empty()).then_some(Value::Object(arguments));
        let more = [("runtimeConfig", runtime_config), ("prevResult", previous)];
        self.network.config_of(plugin, more)
    }
}

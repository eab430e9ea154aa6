//! A network's configuration (specification, section 1): a list of plugins.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::version::{Version, VersionError};

/// Most plugins in a list.
const PLUGINS_MAX: usize = 64;
/// Longest name of a network or plugin, in bytes.
const NAME_MAX: usize = 255;

/// A network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Network {
    /// Unique on the node.
    pub(crate) name: String,
    /// The version that its plugins are spoken to in.
    pub(crate) version: Version,
    /// CHECK must not be called.
    pub(crate) disable_check: bool,
    /// GC must not be called: somebody else uses the network, too.
    pub(crate) disable_gc: bool,
    /// In the order of ADD; at least one.
    pub(crate) plugins: Vec<Plugin>,
}

/// A plugin in a network's list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plugin {
    /// Its program's name.
    pub(crate) kind: String,
    /// Capabilities that it takes arguments for.
    pub(crate) capabilities: BTreeSet<String>,
    /// Its configuration as it was written.
    config: Map<String, Value>,
}

/// A file that configures no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    /// Not JSON, or not an object.
    #[error("is not a JSON object")]
    Json(#[source] serde_json::Error),
    /// A field that has another type, or is missing.
    #[error("has no {0}, or one of a wrong type")]
    Field(&'static str),
    /// A name that is none.
    #[error(
        "{0:?} is not a name: letters, digits, `_`, `.` and `-`, beginning with the former two"
    )]
    Name(String),
    /// A version that is not spoken.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// None, or too many.
    #[error("has no plugins, or more than {PLUGINS_MAX}")]
    Plugins,
}

impl Network {
    /// Reads a list, or the single plugin of files of old.
    ///
    /// # Errors
    ///
    /// [`ListError`] names the first thing that is wrong.
    pub(super) fn parse(text: &[u8]) -> Result<Self, ListError> {
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(ListError::Json)?;
        let name = name(object.get("name"), "name")?;
        let version = version(&object)?;
        let flag = |key: &'static str| match object.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            // The reference implementation takes these, too.
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
            Some(_) => Err(ListError::Field(key)),
        };
        let (disable_check, disable_gc) = (flag("disableCheck")?, flag("disableGC")?);
        let plugins = match object.get("plugins") {
            Some(Value::Array(plugins)) => plugins
                .iter()
                .take(PLUGINS_MAX + 1)
                .map(|plugin| Plugin::parse(plugin.as_object().cloned()))
                .collect::<Result<Vec<_>, _>>()?,
            Some(_) => return Err(ListError::Field("plugins")),
            None => vec![Plugin::parse(Some(object))?],
        };
        if !(1..=PLUGINS_MAX).contains(&plugins.len()) {
            return Err(ListError::Plugins);
        }
        Ok(Self {
            name,
            version,
            disable_check,
            disable_gc,
            plugins,
        })
    }

    /// What `plugin` reads when it is run (specification, section 4, "Deriving execution
    /// configuration"), with `more` fields.
    pub(super) fn config_of<const N: usize>(
        &self,
        plugin: &Plugin,
        more: [(&str, Option<Value>); N],
    ) -> Value {
        let mut config = plugin.config.clone();
        config.remove("capabilities");
        config.retain(|key, _| !key.starts_with("cni.dev/"));
        config.insert("name".to_owned(), self.name.clone().into());
        config.insert("cniVersion".to_owned(), self.version.to_string().into());
        for (key, value) in more {
            if let Some(value) = value {
                config.insert(key.to_owned(), value);
            }
        }
        Value::Object(config)
    }

    /// Whether a plugin takes arguments for a capability.
    pub(crate) fn takes(&self, capability: &str) -> bool {
        self.plugins
            .iter()
            .any(|plugin| plugin.capabilities.contains(capability))
    }
}

impl Plugin {
    fn parse(config: Option<Map<String, Value>>) -> Result<Self, ListError> {
        let config = config.ok_or(ListError::Field("plugins"))?;
        let kind = name(config.get("type"), "type")?;
        let capabilities = match config.get("capabilities") {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Object(capabilities)) => capabilities
                .iter()
                .filter(|(_, takes)| **takes == Value::Bool(true))
                .map(|(name, _)| name.clone())
                .collect(),
            Some(_) => return Err(ListError::Field("capabilities")),
        };
        Ok(Self {
            kind,
            capabilities,
            config,
        })
    }
}

fn name(value: Option<&Value>, field: &'static str) -> Result<String, ListError> {
    let Some(Value::String(name)) = value else {
        return Err(ListError::Field(field));
    };
    let first = |byte: &u8| byte.is_ascii_alphanumeric();
    let other = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let plain = name.len() <= NAME_MAX && name.as_bytes().first().is_some_and(first);
    if plain && name.bytes().all(other) {
        Ok(name.clone())
    } else {
        Err(ListError::Name(name.chars().take(64).collect()))
    }
}

/// The only version, or the newest that is supported of `cniVersions`.
fn version(object: &Map<String, Value>) -> Result<Version, ListError> {
    let listed = match object.get("cniVersions") {
        Some(Value::Array(versions)) => versions
            .iter()
            .filter_map(|version| version.as_str()?.parse::<Version>().ok())
            .max(),
        None | Some(Value::Null) => None,
        Some(_) => return Err(ListError::Field("cniVersions")),
    };
    let single = match object.get("cniVersion") {
        Some(Value::String(text)) => Some(text.parse::<Version>()),
        None | Some(Value::Null) => None,
        Some(_) => return Err(ListError::Field("cniVersion")),
    };
    match (listed, single) {
        (Some(listed), Some(Ok(single))) => Ok(listed.max(single)),
        (Some(listed), _) => Ok(listed),
        (None, Some(single)) => Ok(single?),
        (None, None) => Err(ListError::Field("cniVersion")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<Network, ListError> {
        Network::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_list_keeps_what_its_plugins_are_told() {
        let network = parse(&json!({
            "name": "pods", "cniVersion": "1.0.0", "disableCheck": true,
            "plugins": [
                { "type": "bridge", "bridge": "cni0", "cni.dev/x": 1 },
                { "type": "portmap", "capabilities": { "portMappings": true, "dns": false } },
            ]
        }))
        .unwrap();
        assert!(network.disable_check && !network.disable_gc);
        assert!(network.plugins[0].capabilities.is_empty());
        let taken: Vec<_> = network.plugins[1].capabilities.iter().collect();
        assert_eq!(taken, ["portMappings"]);
        let config = network.config_of(&network.plugins[0], [("prevResult", Some(json!({})))]);
        assert_eq!(
            config,
            json!({
                "name": "pods", "cniVersion": "1.0.0", "type": "bridge", "bridge": "cni0",
                "prevResult": {}
            })
        );
        let config = network.config_of(&network.plugins[1], [("prevResult", None)]);
        assert_eq!(
            config,
            json!({ "name": "pods", "cniVersion": "1.0.0", "type": "portmap" })
        );
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let network =
            parse(&json!({ "name": "n", "cniVersion": "0.3.1", "type": "loopback" })).unwrap();
        assert_eq!(network.plugins.len(), 1);
        assert_eq!(network.plugins[0].kind, "loopback");
    }

    #[test]
    fn the_newest_version_that_is_known_is_spoken() {
        let list = |versions: Value, version: Value| {
            let list = json!({
                "name": "n", "cniVersions": versions, "cniVersion": version,
                "plugins": [{ "type": "x" }]
            });
            parse(&list).map(|network| network.version.to_string())
        };
        let newest = list(json!(["0.4.0", "1.1.0", "9.0.0"]), json!("1.0.0"));
        assert_eq!(newest.unwrap(), "1.1.0");
        assert_eq!(list(Value::Null, json!("1.0.0")).unwrap(), "1.0.0");
        assert!(list(Value::Null, json!("0.1.0")).is_err());
        assert!(list(Value::Null, Value::Null).is_err());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let plugin = json!([{ "type": "x" }]);
        for (bad, what) in [
            (json!([]), "object"),
            (json!({ "cniVersion": "1.0.0", "plugins": plugin }), "name"),
            (
                json!({ "name": "a/b", "cniVersion": "1.0.0", "plugins": plugin }),
                "name",
            ),
            (
                json!({ "name": "", "cniVersion": "1.0.0", "plugins": plugin }),
                "name",
            ),
            (
                json!({ "name": "n", "cniVersion": "1.0.0", "plugins": [] }),
                "plugins",
            ),
            (
                json!({ "name": "n", "cniVersion": "1.0.0", "plugins": [1] }),
                "plugins",
            ),
            (
                json!({ "name": "n", "cniVersion": "1.0.0", "plugins": [{}] }),
                "type",
            ),
            (
                json!({ "name": "n", "cniVersion": "1.0.0", "plugins": [{ "type": "../sh" }] }),
                "name",
            ),
            (
                json!({ "name": "n", "cniVersion": "1.0.0", "disableGC": 1, "plugins": plugin }),
                "disableGC",
            ),
        ] {
            let error = parse(&bad).unwrap_err().to_string();
            assert!(error.contains(what), "{bad}: {error}");
        }
    }
}

//! `tests/critest/expected.toml`: the specs that cannot pass, each with its reason.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::project;

/// The list, from the checkout's root.
const PATH: &str = "tests/critest/expected.toml";

/// Specs that cannot pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expected {
    #[serde(default)]
    spec: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    reason: String,
}

impl Expected {
    /// Reads the list; every entry must be one of critest's `names`, and say why.
    pub(super) fn read(names: &[String]) -> Result<Self> {
        let text = fs::read_to_string(project::root().join(PATH))
            .with_context(|| format!("reading {PATH}"))?;
        Self::parse(&text, names).with_context(|| PATH.to_owned())
    }

    fn parse(text: &str, names: &[String]) -> Result<Self> {
        let list: Self = toml::from_str(text)?;
        for entry in &list.spec {
            ensure!(
                names.contains(&entry.name),
                "critest has no spec {:?}",
                entry.name
            );
            ensure!(!entry.reason.is_empty(), "{:?}: no reason", entry.name);
        }
        Ok(list)
    }

    /// Why this spec cannot pass, if so.
    pub(super) fn reason(&self, name: &str) -> Option<&str> {
        let entry = self.spec.iter().find(|entry| entry.name == name)?;
        Some(&entry.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_name_a_spec_and_a_reason() {
        let names = ["a b".to_owned()];
        let good = "[[spec]]\nname = \"a b\"\nreason = \"because\"\n";
        let list = Expected::parse(good, &names).unwrap();
        assert_eq!(list.reason("a b"), Some("because"));
        assert_eq!(list.reason("a"), None);
        for bad in [
            "[[spec]]\nname = \"a\"\nreason = \"because\"\n",
            "[[spec]]\nname = \"a b\"\nreason = \"\"\n",
            "[[spec]]\nname = \"a b\"\n",
        ] {
            assert!(Expected::parse(bad, &names).is_err(), "{bad}");
        }
    }
}

//! Ginkgo's JSON report (`types.Report` of ginkgo v2).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A suite.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    #[serde(default)]
    spec_reports: Option<Vec<SpecReport>>,
}

/// A spec, or a step around all of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SpecReport {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    /// How it ended.
    pub(super) state: State,
    #[serde(default)]
    failure: Option<Failure>,
}

/// How a spec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// It passed; in a dry run, it would run.
    Passed,
    /// It said that it cannot run here, or was not selected.
    Skipped,
    /// Anything else.
    #[serde(other)]
    Failed,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

impl SpecReport {
    /// The full name.
    pub(super) fn name(&self) -> String {
        let mut texts = self.container_hierarchy_texts.clone().unwrap_or_default();
        texts.push(self.leaf_node_text.clone());
        texts.join(" ")
    }

    /// The outermost text.
    pub(super) fn group(&self) -> &str {
        self.container_hierarchy_texts
            .as_deref()
            .and_then(<[String]>::first)
            .map_or("", String::as_str)
    }
}

/// How a selected spec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It passed.
    Passed,
    /// It said that it cannot run here, and why.
    Skipped(String),
    /// It failed, and with what words.
    Failed(String),
}

impl Outcome {
    /// Looks a spec up in a report, which is not there if critest was cut short.
    pub(super) fn of(name: &str, report: &Path) -> Result<Self> {
        let specs = if report.exists() {
            read(report)?
        } else {
            Vec::new()
        };
        let Some(spec) = specs.into_iter().find(|spec| spec.name() == name) else {
            return Ok(Self::Failed("it did not run".to_owned()));
        };
        let words = spec.failure.map(|failure| failure.message);
        Ok(match (spec.state, words) {
            (State::Passed, _) => Self::Passed,
            (State::Skipped, Some(words)) if !words.is_empty() => Self::Skipped(words),
            (State::Skipped, _) => Self::Failed("it was not reached".to_owned()),
            (State::Failed, words) => Self::Failed(words.unwrap_or_default()),
        })
    }

    /// Whether it failed.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

/// The specs of a report, without the steps around them.
pub(super) fn read(path: &Path) -> Result<Vec<SpecReport>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let suites: Vec<Report> =
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let specs = suites
        .into_iter()
        .filter_map(|suite| suite.spec_reports)
        .flatten();
    Ok(specs.filter(|spec| spec.leaf_node_type == "It").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"[{ "SuiteDescription": "CRI validation", "SpecReports": [
        { "ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "",
          "State": "passed" },
        { "ContainerHierarchyTexts": ["[k8s.io] A", "in"], "LeafNodeType": "It",
          "LeafNodeText": "works", "State": "passed" },
        { "ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It",
          "LeafNodeText": "panics", "State": "panicked", "Failure": { "Message": "nil" } },
        { "ContainerHierarchyTexts": ["[k8s.io] B"], "LeafNodeType": "It",
          "LeafNodeText": "cannot", "State": "skipped", "Failure": { "Message": "no AppArmor" } },
        { "ContainerHierarchyTexts": ["[k8s.io] B"], "LeafNodeType": "It",
          "LeafNodeText": "is not selected", "State": "skipped" }
    ] }]"#;

    #[test]
    fn a_spec_has_passed_only_if_the_report_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        fs::write(&path, REPORT).unwrap();
        let outcome = |name: &str| Outcome::of(name, &path).unwrap();
        assert_eq!(outcome("[k8s.io] A in works"), Outcome::Passed);
        assert_eq!(outcome("[k8s.io] A panics"), Outcome::Failed("nil".into()));
        assert_eq!(
            outcome("[k8s.io] B cannot"),
            Outcome::Skipped("no AppArmor".into())
        );
        assert!(outcome("[k8s.io] B is not selected").is_failure());
        assert!(outcome("[k8s.io] C is missing").is_failure());
        let nowhere = folder.path().join("nowhere.json");
        assert!(Outcome::of("any", &nowhere).unwrap().is_failure());
        assert_eq!(read(&path).unwrap()[0].group(), "[k8s.io] A");
    }
}

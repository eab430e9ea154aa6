//! What came of each spec, against what was expected, and the table of it.

use std::collections::BTreeMap;
use std::fmt;

use super::expected::Expected;
use super::report::Outcome;
use super::spec::{Spec, Transport};
use crate::test::Count;

/// A spec, and what came of it.
#[derive(Debug)]
pub(super) struct Verdict {
    spec: Spec,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Passed,
    /// Failed as expected, for this reason.
    Expected(String),
    /// It said that it cannot run here.
    Skipped(String),
    /// It failed, or passed though the list says that it cannot.
    Failed(String),
}

impl Verdict {
    /// Judges a spec.
    pub(super) fn new(spec: Spec, outcome: Outcome, expected: &Expected) -> Self {
        let kind = match (outcome, expected.reason(&spec.name)) {
            (Outcome::Passed, None) => Kind::Passed,
            (Outcome::Passed, Some(_)) => {
                Kind::Failed("it passed: take it off the list of those that cannot".to_owned())
            }
            (Outcome::Failed(_), Some(reason)) => Kind::Expected(reason.to_owned()),
            (Outcome::Failed(words), None) => Kind::Failed(words),
            (Outcome::Skipped(words), _) => Kind::Skipped(words),
        };
        Self { spec, kind }
    }

    /// How it counts. What was expected to fail has not passed, and is no failure.
    pub(super) fn count(&self) -> Count {
        let mut count = Count::default();
        match self.kind {
            Kind::Passed => count.passed = 1,
            Kind::Expected(_) | Kind::Skipped(_) => count.skipped = 1,
            Kind::Failed(_) => count.failed = 1,
        }
        count
    }

    fn group(&self) -> String {
        let group = self.spec.group.trim_start_matches("[k8s.io] ");
        match self.spec.transport {
            Transport::Spdy => group.to_owned(),
            Transport::WebSocket => format!("{group}, WebSocket"),
        }
    }
}

/// A line for each group, then each spec that did not pass.
#[derive(Debug)]
pub(super) struct Table<'a>(pub(super) &'a [Verdict]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: BTreeMap<String, [u32; 4]> = BTreeMap::new();
        for verdict in self.0 {
            let row = groups.entry(verdict.group()).or_default();
            row[match verdict.kind {
                Kind::Passed => 0,
                Kind::Failed(_) => 1,
                Kind::Expected(_) => 2,
                Kind::Skipped(_) => 3,
            }] += 1;
        }
        writeln!(
            f,
            "{:<40} {:>8} {:>8} {:>8} {:>8}",
            "group", "passed", "failed", "expected", "skipped"
        )?;
        for (group, [passed, failed, expected, skipped]) in groups {
            writeln!(
                f,
                "{group:<40} {passed:>8} {failed:>8} {expected:>8} {skipped:>8}"
            )?;
        }
        for verdict in self.0 {
            let (what, why) = match &verdict.kind {
                Kind::Passed => continue,
                Kind::Failed(why) => ("failed", why),
                Kind::Expected(why) => ("cannot pass", why),
                Kind::Skipped(why) => ("skipped", why),
            };
            let Spec {
                name, transport, ..
            } = &verdict.spec;
            writeln!(f, "{what}: {name} ({transport}): {}", why.trim())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_is_a_failure_where_the_list_says_that_it_cannot_be() {
        let text = "[[spec]]\nname = \"a\"\nreason = \"because\"\n";
        let expected: Expected = toml::from_str(text).unwrap();
        let verdict = |name: &str, outcome: Outcome| {
            let spec = Spec {
                name: name.to_owned(),
                group: "[k8s.io] G".to_owned(),
                transport: Transport::Spdy,
            };
            Verdict::new(spec, outcome, &expected)
        };
        let failed = || Outcome::Failed("words".into());
        assert_eq!(
            verdict("a", failed()).kind,
            Kind::Expected("because".into())
        );
        assert_eq!(verdict("a", Outcome::Passed).count().failed, 1);
        assert_eq!(verdict("b", failed()).kind, Kind::Failed("words".into()));
        assert_eq!(verdict("b", Outcome::Passed).count().passed, 1);
        let table = Table(&[verdict("b", failed())]).to_string();
        assert!(table.contains("failed: b (spdy): words"), "{table}");
    }
}

//! Label selectors.

use std::collections::HashMap;

/// Whether the labels that `label` looks up have every pair of `selector` ("labels are ANDed", CRI
/// `PodSandboxFilter`).
pub(super) fn match_all<'a>(
    label: impl Fn(&str) -> Option<&'a String>,
    selector: &HashMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| label(key) == Some(value))
}

//! Label selectors.

use std::collections::HashMap;

/// Whether `labels` has every pair of `selector` ("labels are ANDed", CRI `PodSandboxFilter`).
pub(super) fn match_all(
    labels: &HashMap<String, String>,
    selector: &HashMap<String, String>,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

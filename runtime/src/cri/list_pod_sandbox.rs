//! `ListPodSandbox`: the pods that a filter lets through.

use isopod_proto::cri::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter,
};

use super::pod_sandbox_status::{metadata, state};
use super::{Cri, labels};
use crate::sandbox::Sandbox;

pub(super) fn list_pod_sandbox(
    cri: &Cri,
    request: ListPodSandboxRequest,
) -> ListPodSandboxResponse {
    let filter = request.filter.unwrap_or_default();
    let sandboxes = cri.sandboxes.list();
    let items = sandboxes.iter().map(|sandbox| summary(sandbox));
    ListPodSandboxResponse {
        items: items.filter(|item| passes(item, &filter)).collect(),
    }
}

fn summary(sandbox: &Sandbox) -> PodSandbox {
    PodSandbox {
        id: sandbox.id.to_string(),
        metadata: Some(metadata(sandbox)),
        state: state(sandbox).into(),
        created_at: sandbox.created_at_ns,
        labels: sandbox.config.labels.clone().into_iter().collect(),
        annotations: sandbox.config.annotations.clone().into_iter().collect(),
        runtime_handler: sandbox.handler.clone(),
    }
}

/// All conditions at once; the id may be a beginning, as everywhere.
fn passes(item: &PodSandbox, filter: &PodSandboxFilter) -> bool {
    item.id.starts_with(&filter.id)
        && filter
            .state
            .as_ref()
            .is_none_or(|wanted| wanted.state == item.state)
        && labels::match_all(|key| item.labels.get(key), &filter.label_selector)
}

#[cfg(test)]
mod tests {
    use isopod_proto::cri::{PodSandboxState, PodSandboxStateValue};

    use super::*;

    #[test]
    fn conditions_of_a_filter_hold_together() {
        let label = |value: &str| [("app".to_owned(), value.to_owned())].into();
        let item = PodSandbox {
            id: "abc".into(),
            labels: label("web"),
            ..Default::default()
        };
        let not_ready = PodSandboxStateValue {
            state: PodSandboxState::SandboxNotready.into(),
        };
        let with = |id: &str, state, label_selector| {
            passes(
                &item,
                &PodSandboxFilter {
                    id: id.into(),
                    state,
                    label_selector,
                },
            )
        };
        assert!(with("", None, [].into()));
        assert!(with(
            "ab",
            Some(PodSandboxStateValue::default()),
            label("web")
        ));
        assert!(!with("b", None, [].into()));
        assert!(!with("abc", Some(not_ready), [].into()));
        assert!(!with("abc", None, label("db")));
    }
}

//! `ListContainers`: the containers that a filter lets through.

use isopod_proto::cri;
use isopod_proto::cri::{ContainerFilter, ListContainersRequest, ListContainersResponse};

use super::container_status::{image, metadata};
use super::{Cri, labels};
use crate::container::Container;

pub(super) fn list_containers(cri: &Cri, request: ListContainersRequest) -> ListContainersResponse {
    let filter = request.filter.unwrap_or_default();
    let containers = cri.containers.list();
    let items = containers.iter().map(|container| summary(container));
    ListContainersResponse {
        containers: items.filter(|item| passes(item, &filter)).collect(),
    }
}

fn summary(container: &Container) -> cri::Container {
    let config = &container.config;
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.sandbox.id.to_string(),
        metadata: Some(metadata(container)),
        image: Some(image(container)),
        image_ref: config.image_ref.clone(),
        image_id: config.image_id.clone(),
        state: container.state().to_cri().into(),
        created_at: container.created_at_ns,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
    }
}

/// All conditions at once; ids may be beginnings, as everywhere.
fn passes(item: &cri::Container, filter: &ContainerFilter) -> bool {
    item.id.starts_with(&filter.id)
        && item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter
            .state
            .as_ref()
            .is_none_or(|wanted| wanted.state == item.state)
        && labels::match_all(|key| item.labels.get(key), &filter.label_selector)
}

#[cfg(test)]
mod tests {
    use isopod_proto::cri::{ContainerState, ContainerStateValue};

    use super::*;

    #[test]
    fn conditions_of_a_filter_hold_together() {
        let item = cri::Container {
            id: "abc".into(),
            pod_sandbox_id: "def".into(),
            state: ContainerState::ContainerRunning.into(),
            ..Default::default()
        };
        let passes = |change: fn(&mut ContainerFilter)| {
            let mut filter = ContainerFilter::default();
            change(&mut filter);
            passes(&item, &filter)
        };
        assert!(passes(|_filter| {}));
        assert!(passes(
            |filter| (filter.id, filter.pod_sandbox_id) = ("a".into(), "def".into())
        ));
        assert!(!passes(|filter| filter.pod_sandbox_id = "abc".into()));
        assert!(!passes(
            |filter| filter.label_selector = [("a".into(), "b".into())].into()
        ));
        assert!(!passes(|filter| {
            filter.state = Some(ContainerStateValue {
                state: ContainerState::ContainerExited.into(),
            });
        }));
    }
}

//! `ListContainerStats`: what the running containers use that a filter lets through.

use std::collections::BTreeMap;
use std::sync::Arc;

use isopod_proto::cri;
use isopod_proto::cri::{
    ContainerStatsFilter, ListContainerStatsRequest, ListContainerStatsResponse,
};

use super::container_stats::{describe, is_running};
use super::{Cri, labels};
use crate::container::Container;
use crate::id::SandboxId;
use crate::sandbox::Sandbox;
use crate::stats;

type OfSandbox = (Arc<Sandbox>, Vec<Arc<Container>>);

pub(super) async fn list_container_stats(
    cri: &Cri,
    request: ListContainerStatsRequest,
) -> ListContainerStatsResponse {
    let filter = request.filter.unwrap_or_default();
    ListContainerStatsResponse {
        stats: of_containers(cri, &filter).await,
    }
}

/// By container id. A container whose guest cannot say is left out.
pub(super) async fn of_containers(
    cri: &Cri,
    filter: &ContainerStatsFilter,
) -> Vec<cri::ContainerStats> {
    let mut wanted = cri.containers.list();
    wanted.retain(|container| is_running(container) && passes(container, filter));
    // A guest need not read the books of a thousand containers for one.
    let alone = match wanted.as_slice() {
        [container] => Some(container.id.clone()),
        _ => None,
    };
    let ask = alone.as_ref().map_or(stats::Ask::All, stats::Ask::One);
    let mut by_sandbox: BTreeMap<SandboxId, OfSandbox> = BTreeMap::new();
    for container in wanted {
        let entry = by_sandbox.entry(container.sandbox.id.clone());
        let (_, containers) = entry.or_insert_with(|| (Arc::clone(&container.sandbox), Vec::new()));
        containers.push(container);
    }
    let asked = by_sandbox.into_values().collect();
    let mut answers = Vec::new();
    for (_, containers, sample) in stats::of_sandboxes(asked, ask).await {
        let described = containers.iter().filter_map(|container| {
            Some((container.id.clone(), describe(cri, container, &sample)?))
        });
        answers.extend(described);
    }
    answers.sort_by(|(left, _), (right, _)| left.cmp(right));
    answers.into_iter().map(|(_, stats)| stats).collect()
}

/// All conditions at once; ids may be beginnings, as everywhere.
fn passes(container: &Container, filter: &ContainerStatsFilter) -> bool {
    container.id.as_str().starts_with(&filter.id)
        && container
            .sandbox
            .id
            .as_str()
            .starts_with(&filter.pod_sandbox_id)
        && labels::match_all(
            |key| container.config.labels.get(key),
            &filter.label_selector,
        )
}

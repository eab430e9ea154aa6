//! `ListPodSandboxStats`: what the ready pods use that a filter lets through.

use std::sync::Arc;

use isopod_proto::cri;
use isopod_proto::cri::{
    ListPodSandboxStatsRequest, ListPodSandboxStatsResponse, PodSandboxStatsFilter,
};

use super::pod_sandbox_stats::describe;
use super::{Cri, labels};
use crate::sandbox::{Sandbox, SandboxState};
use crate::stats;

pub(super) async fn list_pod_sandbox_stats(
    cri: &Cri,
    request: ListPodSandboxStatsRequest,
) -> ListPodSandboxStatsResponse {
    let filter = request.filter.unwrap_or_default();
    ListPodSandboxStatsResponse {
        stats: of_pods(cri, &filter).await,
    }
}

/// By sandbox id. A pod whose guest cannot say is left out.
pub(super) async fn of_pods(
    cri: &Cri,
    filter: &PodSandboxStatsFilter,
) -> Vec<cri::PodSandboxStats> {
    let passing = |sandbox: &Sandbox| {
        sandbox.state() == SandboxState::Ready
            && sandbox.id.as_str().starts_with(&filter.id)
            && labels::match_all(|key| sandbox.config.labels.get(key), &filter.label_selector)
    };
    let mut answers: Vec<_> = of_ready(cri, passing)
        .await
        .iter()
        .map(|(sandbox, sample)| (sandbox.id.clone(), describe(cri, sandbox, sample)))
        .collect();
    answers.sort_by(|(left, _), (right, _)| left.cmp(right));
    answers.into_iter().map(|(_, stats)| stats).collect()
}

/// What the guests say of the sandboxes that pass, in no order.
pub(super) async fn of_ready(
    cri: &Cri,
    passing: impl Fn(&Sandbox) -> bool,
) -> Vec<(Arc<Sandbox>, stats::Sample)> {
    let sandboxes = cri.sandboxes.list().into_iter();
    let asked = sandboxes
        .filter(|sandbox| passing(sandbox))
        .map(|sandbox| (sandbox, ()))
        .collect();
    let answers = stats::of_sandboxes(asked, stats::Ask::All)
        .await
        .into_iter();
    answers
        .map(|(sandbox, (), sample)| (sandbox, sample))
        .collect()
}

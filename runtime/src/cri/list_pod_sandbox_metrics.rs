//! `ListPodSandboxMetrics`: cAdvisor's metrics of every ready pod and its running containers.

use isopod_proto::cri::{ListPodSandboxMetricsResponse, PodSandboxMetrics};

use super::Cri;
use super::container_stats::is_running;
use crate::sandbox::SandboxState;
use crate::stats;

pub(super) async fn list_pod_sandbox_metrics(cri: &Cri) -> ListPodSandboxMetricsResponse {
    ListPodSandboxMetricsResponse {
        pod_metrics: of_pods(cri).await,
    }
}

/// By sandbox id. A pod whose guest cannot say is left out.
pub(super) async fn of_pods(cri: &Cri) -> Vec<PodSandboxMetrics> {
    let mut sandboxes = cri.sandboxes.list();
    sandboxes.retain(|sandbox| sandbox.state() == SandboxState::Ready);
    let asked = sandboxes.into_iter().map(|sandbox| (sandbox, ())).collect();
    let answers = stats::of_sandboxes(asked, stats::Ask::AllInDetail).await;
    let mut metrics: Vec<_> = answers
        .iter()
        .map(|(sandbox, (), sample)| {
            let mut containers = cri.containers.of_sandbox(&sandbox.id);
            containers.retain(|container| is_running(container));
            stats::pod_metrics(sandbox, &containers, sample)
        })
        .collect();
    metrics.sort_by(|left, right| left.pod_sandbox_id.cmp(&right.pod_sandbox_id));
    metrics
}

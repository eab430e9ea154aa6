//! `ListMetricDescriptors`: what `ListPodSandboxMetrics` can tell, the same for a daemon's whole life.

use isopod_proto::cri::ListMetricDescriptorsResponse;

use crate::stats;

pub(super) fn list_metric_descriptors() -> ListMetricDescriptorsResponse {
    ListMetricDescriptorsResponse {
        descriptors: stats::metric_descriptors(),
    }
}

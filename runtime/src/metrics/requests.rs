//! Measures every call of the gRPC server.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::BoxFuture;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::Metrics;

/// The method whose time is also that of a pull.
pub(super) const PULL: &str = "PullImage";

/// Every method that is served; others are one, whatever a client calls them.
const METHODS: [&str; 46] = [
    "Attach",
    "CheckpointContainer",
    "CheckpointPod",
    "ContainerStats",
    "ContainerStatus",
    "CreateContainer",
    "Exec",
    "ExecSync",
    "Export",
    "GetContainerEvents",
    "ImageFsInfo",
    "ImageStatus",
    "ListContainerStats",
    "ListContainers",
    "ListImages",
    "ListMetricDescriptors",
    "ListPodSandbox",
    "ListPodSandboxMetrics",
    "ListPodSandboxStats",
    "PodSandboxStats",
    "PodSandboxStatus",
    "PortForward",
    "Pull",
    PULL,
    "RemoveContainer",
    "RemoveImage",
    "RemovePodSandbox",
    "ReopenContainerLog",
    "RestorePod",
    "RunPodSandbox",
    "RuntimeConfig",
    "StartContainer",
    "Status",
    "StopContainer",
    "StopPodSandbox",
    "StreamContainerStats",
    "StreamContainers",
    "StreamImages",
    "StreamPodSandboxMetrics",
    "StreamPodSandboxStats",
    "StreamPodSandboxes",
    "UpdateContainerResources",
    "UpdatePodSandboxResources",
    "UpdateRuntimeConfig",
    "Version",
    OTHER,
];

const OTHER: &str = "other";

/// Puts the measuring around a server's services.
#[derive(Debug, Clone)]
pub(crate) struct Measure(pub(crate) Arc<Metrics>);

impl<S> Layer<S> for Measure {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured {
            inner,
            metrics: Arc::clone(&self.0),
        }
    }
}

/// A service that is measured.
#[derive(Debug, Clone)]
pub(crate) struct Measured<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, A, B> Service<http::Request<A>> for Measured<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<A>) -> Self::Future {
        let method = method(request.uri().path());
        let (begun, metrics) = (Instant::now(), Arc::clone(&self.metrics));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // A failure before the first message is in the headers; a success is not.
            let status = Status::from_header_map(response.headers());
            let code = status.map_or(Code::Ok, |status| status.code());
            metrics.called(method, begun.elapsed(), code);
            Ok(response)
        })
    }
}

/// The method in `/package.Service/Method`.
fn method(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let known = METHODS.iter().find(|method| **method == name);
    known.copied().unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_methods_have_their_names_and_all_others_one() {
        assert_eq!(method("/runtime.v1.RuntimeService/Version"), "Version");
        assert_eq!(method("/runtime.v1.ImageService/PullImage"), PULL);
        for odd in ["", "/", "/a/b", "/x/Version\n", "/x/\"} 1\nisopod_x 1"] {
            assert_eq!(method(odd), OTHER, "{odd:?}");
        }
    }
}

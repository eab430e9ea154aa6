//! The daemon's own metrics, for Prometheus, at `[metrics] address`.
//!
//! Labels are words of this program: methods, codes, states. No name that a pod or an image chose is
//! one, so nobody outside decides how many series there are, or what is in the text.
//!
//! ```text
//!  gRPC server ──> requests (counts each call) ──┐
//!  sandboxes, containers, /proc ──> node ────────┴──> server ──> GET /metrics
//!                                   (counted when asked)
//! ```

mod node;
mod requests;
mod server;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tonic::Code;

pub(crate) use self::requests::Measure;
pub(crate) use self::server::{MetricsError, MetricsServer};
use crate::container::Containers;
use crate::sandbox::Sandboxes;

/// Upper bounds of the time that a call takes, in seconds: from a status to a pull.
const BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Whose time it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    method: &'static str,
}

/// What failed, and with which of gRPC's codes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    method: &'static str,
    code: &'static str,
}

/// How a pull ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pulled {
    result: &'static str,
}

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: Family<Called, Histogram>,
    failures: Family<Failed, Counter>,
    pulls: Family<Pulled, Histogram>,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Metrics {
    /// Nothing was counted yet; sandboxes and containers are when somebody asks.
    pub(crate) fn new(sandboxes: Arc<Sandboxes>, containers: Arc<Containers>) -> Self {
        let mut registry = Registry::with_prefix("isopod");
        let calls = Family::new_with_constructor(histogram as fn() -> Histogram);
        let failures = Family::default();
        let pulls = Family::new_with_constructor(histogram as fn() -> Histogram);
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The daemon's version", Info::new(version));
        registry.register(
            "cri_request_duration_seconds",
            "Time that calls took, streams up to their first message",
            calls.clone(),
        );
        registry.register(
            "cri_failures",
            "Calls that failed, by gRPC status code",
            failures.clone(),
        );
        registry.register(
            "image_pull_duration_seconds",
            "Time that image pulls took",
            pulls.clone(),
        );
        registry.register_collector(Box::new(node::Node {
            sandboxes,
            containers,
        }));
        Self {
            registry,
            calls,
            failures,
            pulls,
        }
    }

    /// A call has ended.
    fn called(&self, method: &'static str, took: Duration, code: Code) {
        let seconds = took.as_secs_f64();
        self.calls
            .get_or_create(&Called { method })
            .observe(seconds);
        if method == requests::PULL {
            let result = if code == Code::Ok { "ok" } else { "failed" };
            self.pulls
                .get_or_create(&Pulled { result })
                .observe(seconds);
        }
        if code != Code::Ok {
            let code = code_name(code);
            self.failures.get_or_create(&Failed { method, code }).inc();
        }
    }

    /// All of it as text (OpenMetrics 1.0). Blocking: it reads `/proc`.
    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// As gRPC's documents write it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

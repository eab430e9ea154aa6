//! The CRI server: every gRPC method in a file named after it.
//!
//! [`serve`] opens the records and the images, finds the pods of an earlier daemon again, and
//! listens. A method looks up, says what its idempotence rule is and where it comes from, and
//! delegates; tasks, spans, logging (`call`) and codes (`error`) are the same for all of them.
//!
//! ```text
//! kubelet, crictl ── gRPC ──> service ──> one file per method ──> sandbox | container | streaming
//!                               └──> image, images
//! ```

mod attach;
mod call;
mod chunks;
mod container_stats;
mod container_status;
mod create_container;
mod error;
mod exec;
mod exec_sync;
mod get_container_events;
mod handler;
pub(crate) mod image;
mod images;
mod labels;
mod list_container_stats;
mod list_containers;
mod list_metric_descriptors;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod notify;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod remove_container;
mod remove_pod_sandbox;
mod reopen_container_log;
mod run_pod_sandbox;
mod runtime_config;
mod serve;
mod service;
mod start_container;
mod status;
mod stop_container;
mod stop_pod_sandbox;
mod stream_container_stats;
mod stream_containers;
mod stream_pod_sandbox_metrics;
mod stream_pod_sandbox_stats;
mod stream_pod_sandboxes;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod update_runtime_config;
mod version;

use std::sync::Arc;

pub(crate) use self::serve::serve;
use crate::config::Config;
use crate::container::Containers;
use crate::events::Events;
use crate::network::Networks;
use crate::sandbox::Sandboxes;
use crate::streaming;

/// What the methods work on. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Cri {
    config: Arc<Config>,
    sandboxes: Arc<Sandboxes>,
    containers: Arc<Containers>,
    events: Arc<Events>,
    networks: Arc<Networks>,
    streaming: Arc<streaming::Server>,
}

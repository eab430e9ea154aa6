//! What is on the node, counted when somebody asks.

use std::fs;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::container::Containers;
use crate::sandbox::{SandboxState, Sandboxes};

/// Counts sandboxes, containers, and what VMMs take of the host.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) sandboxes: Arc<Sandboxes>,
    pub(super) containers: Arc<Containers>,
}

impl Collector for Node {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let (mut ready, mut not_ready) = (0, 0);
        let (mut vmms, mut resident, mut largest) = (0, 0, 0);
        for sandbox in self.sandboxes.list() {
            if sandbox.state() != SandboxState::Ready {
                not_ready += 1;
                continue;
            }
            ready += 1;
            let pid = sandbox.vm().map(|vm| vm.process_id().pid);
            if let Some(bytes) = pid.and_then(resident_bytes) {
                vmms += 1;
                resident += bytes;
                largest = largest.max(bytes);
            }
        }
        let help = "Sandboxes, by state";
        let counts = [("ready", ready), ("not_ready", not_ready)];
        by_state(&mut encoder, "sandboxes", help, &counts)?;

        let (mut created, mut running, mut exited) = (0, 0, 0);
        for container in self.containers.list() {
            match container.state().name() {
                "created" => created += 1,
                "running" => running += 1,
                _ => exited += 1,
            }
        }
        let help = "Containers, by state";
        let counts = [
            ("created", created),
            ("running", running),
            ("exited", exited),
        ];
        by_state(&mut encoder, "containers", help, &counts)?;

        let gauges = [
            ("vmms", "Processes of running virtual machines", vmms),
            (
                "vmm_resident_bytes",
                "Memory of the host that all VMMs take, that of their guests included",
                resident,
            ),
            (
                "vmm_resident_bytes_max",
                "Memory of the host that the largest VMM takes",
                largest,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

fn by_state(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    counts: &[(&str, i64)],
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (state, count) in counts {
        let labels = [("state", *state)];
        let metric = family.encode_family(&labels)?;
        ConstGauge::new(*count).encode(metric)?;
    }
    Ok(())
}

/// `VmRSS` of `proc_pid_status(5)`; `None` when the process has ended.
fn resident_bytes(pid: i32) -> Option<i64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

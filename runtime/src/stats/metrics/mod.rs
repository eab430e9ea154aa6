//! The metrics that cAdvisor would tell of pods and containers, for a kubelet that takes them from the
//! CRI.
//!
//! Names, labels and meanings are cAdvisor's, so that dashboards go on working. The CRI's values are
//! whole numbers: seconds lose their fractions. Labels are values in a message here; whoever writes
//! them as text escapes them.
//!
//! [`table`] has what there is; this fills it in.

mod table;

use std::sync::Arc;

use isopod_proto::agent::{
    CgroupStats, ContainerStats, InterfaceStats, LayerStats, OpenFiles, Pressure,
};
use isopod_proto::cri;

use self::table::{self as t, Metric};
use super::Sample;
use super::describe::working_set;
use crate::container::{Container, ContainerState};
use crate::sandbox::Sandbox;

/// What can be told.
pub(crate) fn metric_descriptors() -> Vec<cri::MetricDescriptor> {
    t::ALL.iter().map(|metric| metric.descriptor()).collect()
}

/// What a guest said, as metrics of its pod and of those containers that it spoke of.
pub(crate) fn pod_metrics(
    sandbox: &Sandbox,
    containers: &[Arc<Container>],
    sample: &Sample,
) -> cri::PodSandboxMetrics {
    let id = sandbox.id.as_str();
    let mut pod = Writer::new(sandbox, "", id, "", sample.at_ns);
    pod.group(&sample.guest.sandbox);
    for interface in &sample.guest.interfaces {
        pod.interface(interface);
    }
    pod.seen(sandbox.created_at_ns);
    let container_metrics = containers
        .iter()
        .filter_map(|container| {
            let told = sample.guest.containers.get(&container.id)?;
            Some(container_metrics(container, told, sample.at_ns))
        })
        .collect();
    cri::PodSandboxMetrics {
        pod_sandbox_id: id.to_owned(),
        metrics: pod.metrics,
        container_metrics,
    }
}

fn container_metrics(
    container: &Container,
    told: &ContainerStats,
    at_ns: i64,
) -> cri::ContainerMetrics {
    let config = &container.config;
    let id = container.id.as_str();
    let image = match config.user_specified_image.as_str() {
        "" => &config.image,
        named => named,
    };
    let mut writer = Writer::new(&container.sandbox, &config.name, id, image, at_ns);
    if let Some(group) = told.cgroup.as_ref() {
        writer.group(group);
    }
    if let Some(layer) = told.writable_layer.as_ref() {
        writer.layer(layer);
    }
    if let Some(open) = told.open_files.as_ref() {
        writer.open_files(open);
    }
    writer.limits(container);
    let started_at_ns = match container.state() {
        ContainerState::Running { started_at_ns } => started_at_ns,
        ContainerState::Created | ContainerState::Exited(_) => container.created_at_ns,
    };
    writer.seen(started_at_ns);
    cri::ContainerMetrics {
        container_id: id.to_owned(),
        metrics: writer.metrics,
    }
}

/// Writes the metrics of one pod or container.
struct Writer {
    base: [String; t::BASE_LABELS.len()],
    at_ns: i64,
    metrics: Vec<cri::Metric>,
}

impl Writer {
    fn new(sandbox: &Sandbox, container: &str, id: &str, image: &str, at_ns: i64) -> Self {
        let pod = &sandbox.config;
        let base = [container, id, image, id, &pod.namespace, &pod.name];
        Self {
            base: base.map(str::to_owned),
            at_ns,
            metrics: Vec::new(),
        }
    }

    fn add(&mut self, metric: &Metric, more: &[&str], value: u64) {
        debug_assert_eq!(metric.labels.len(), more.len(), "{}", metric.name);
        let own = more.iter().map(|&value| value.to_owned());
        self.metrics.push(cri::Metric {
            name: metric.name.to_owned(),
            timestamp: self.at_ns,
            metric_type: metric.kind.into(),
            label_values: self.base.iter().cloned().chain(own).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }

    fn group(&mut self, group: &CgroupStats) {
        self.cpu(group);
        self.memory(group);
        if let Some(io) = group.io.as_ref() {
            // All disks of the guest together.
            self.add(&t::FS_READS_BYTES, &[""], io.read_bytes);
            self.add(&t::FS_WRITES_BYTES, &[""], io.written_bytes);
            self.add(&t::FS_READS, &[""], io.reads);
            self.add(&t::FS_WRITES, &[""], io.writes);
            self.add(&t::BLKIO, &["", "", "", "Read"], io.read_bytes);
            self.add(&t::BLKIO, &["", "", "", "Write"], io.written_bytes);
            let metrics = (&t::PRESSURE_IO_WAITING, &t::PRESSURE_IO_STALLED);
            self.pressure(metrics, io.pressure.as_ref());
        }
        self.add(&t::PROCESSES, &[], group.processes);
        self.add(&t::THREADS, &[], group.threads);
        self.add(&t::THREADS_MAX, &[], group.threads_limit);
    }

    fn cpu(&mut self, group: &CgroupStats) {
        let Some(cpu) = group.cpu.as_ref() else {
            return;
        };
        self.add(&t::CPU_USAGE, &["total"], seconds(cpu.usage_us));
        self.add(&t::CPU_USER, &[], seconds(cpu.user_us));
        self.add(&t::CPU_SYSTEM, &[], seconds(cpu.system_us));
        self.add(&t::CFS_PERIODS, &[], cpu.periods);
        self.add(&t::CFS_THROTTLED_PERIODS, &[], cpu.throttled_periods);
        self.add(&t::CFS_THROTTLED_SECONDS, &[], seconds(cpu.throttled_us));
        let metrics = (&t::PRESSURE_CPU_WAITING, &t::PRESSURE_CPU_STALLED);
        self.pressure(metrics, cpu.pressure.as_ref());
    }

    fn memory(&mut self, group: &CgroupStats) {
        let Some(memory) = group.memory.as_ref() else {
            return;
        };
        for (metric, value) in [
            (&t::MEMORY_CACHE, memory.file),
            (&t::MEMORY_RSS, memory.anon),
            (&t::MEMORY_SWAP, memory.swap),
            (&t::MEMORY_MAPPED_FILE, memory.mapped_file),
            (&t::MEMORY_KERNEL, memory.kernel),
            (&t::MEMORY_ACTIVE_FILE, memory.active_file),
            (&t::MEMORY_INACTIVE_FILE, memory.inactive_file),
            (&t::MEMORY_USAGE, memory.usage),
            (&t::MEMORY_MAX_USAGE, memory.peak),
            (&t::MEMORY_WORKING_SET, working_set(memory)),
            (&t::MEMORY_FAILCNT, memory.limit_hits),
            (&t::OOM_EVENTS, memory.oom_kills),
        ] {
            self.add(metric, &[], value);
        }
        // A cgroup's faults include those below it; there are no others to tell.
        for scope in ["container", "hierarchy"] {
            let faults = [
                ("pgfault", memory.page_faults),
                ("pgmajfault", memory.major_page_faults),
            ];
            for (kind, count) in faults {
                self.add(&t::MEMORY_FAILURES, &[kind, scope], count);
            }
        }
        let metrics = (&t::PRESSURE_MEMORY_WAITING, &t::PRESSURE_MEMORY_STALLED);
        self.pressure(metrics, memory.pressure.as_ref());
    }

    /// `(some, full)`.
    fn pressure(&mut self, metrics: (&Metric, &Metric), pressure: Option<&Pressure>) {
        let Some(pressure) = pressure else { return };
        if let Some(some) = pressure.some.as_ref() {
            self.add(metrics.0, &[], seconds(some.total_us));
        }
        if let Some(full) = pressure.full.as_ref() {
            self.add(metrics.1, &[], seconds(full.total_us));
        }
    }

    fn interface(&mut self, counted: &InterfaceStats) {
        let name = counted.name.as_str();
        for (metric, value) in [
            (&t::RX_BYTES, counted.rx_bytes),
            (&t::RX_PACKETS, counted.rx_packets),
            (&t::RX_ERRORS, counted.rx_errors),
            (&t::RX_DROPPED, counted.rx_dropped),
            (&t::TX_BYTES, counted.tx_bytes),
            (&t::TX_PACKETS, counted.tx_packets),
            (&t::TX_ERRORS, counted.tx_errors),
            (&t::TX_DROPPED, counted.tx_dropped),
        ] {
            self.add(metric, &[name], value);
        }
    }

    fn layer(&mut self, layer: &LayerStats) {
        self.add(&t::FS_USAGE, &[""], layer.bytes);
    }

    fn open_files(&mut self, open: &OpenFiles) {
        self.add(&t::FILE_DESCRIPTORS, &[], open.descriptors);
        self.add(&t::SOCKETS, &[], open.sockets);
        self.add(&t::ULIMITS_SOFT, &["max_open_files"], open.soft_limit);
    }

    fn limits(&mut self, container: &Container) {
        let resources = container.resources();
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        for (metric, value) in [
            (&t::SPEC_CPU_PERIOD, resources.cpu_period),
            (&t::SPEC_CPU_QUOTA, resources.cpu_quota),
            (&t::SPEC_CPU_SHARES, resources.cpu_shares),
            (&t::SPEC_MEMORY_LIMIT, resources.memory_limit_in_bytes),
            (&t::SPEC_MEMORY_RESERVATION, 0),
            (&t::SPEC_SWAP_LIMIT, resources.memory_swap_limit_in_bytes),
        ] {
            self.add(metric, &[], number(value));
        }
    }

    fn seen(&mut self, started_at_ns: i64) {
        let seconds = |ns: i64| u64::try_from(ns / 1_000_000_000).unwrap_or(0);
        self.add(&t::START_TIME, &[], seconds(started_at_ns));
        self.add(&t::LAST_SEEN, &[], seconds(self.at_ns));
    }
}

fn seconds(us: u64) -> u64 {
    us / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn each_metric_is_described_once_and_no_label_twice() {
        let descriptors = metric_descriptors();
        let names: HashSet<_> = descriptors.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names.len(), descriptors.len());
        for descriptor in &descriptors {
            let keys: HashSet<_> = descriptor.label_keys.iter().collect();
            assert_eq!(keys.len(), descriptor.label_keys.len());
            assert!(!descriptor.help.is_empty());
        }
    }

    #[test]
    fn what_is_written_is_described_with_as_many_labels() {
        let mut writer = Writer {
            base: Default::default(),
            at_ns: 5_000_000_000,
            metrics: Vec::new(),
        };
        let pressure = Pressure {
            some: Some(Default::default()).into(),
            full: Some(Default::default()).into(),
            ..Default::default()
        };
        let cpu = isopod_proto::agent::CpuStats {
            usage_us: 2_500_000,
            pressure: Some(pressure.clone()).into(),
            ..Default::default()
        };
        let memory = isopod_proto::agent::MemoryStats {
            pressure: Some(pressure.clone()).into(),
            ..Default::default()
        };
        let io = isopod_proto::agent::IoStats {
            pressure: Some(pressure).into(),
            ..Default::default()
        };
        writer.group(&CgroupStats {
            cpu: Some(cpu).into(),
            memory: Some(memory).into(),
            io: Some(io).into(),
            ..Default::default()
        });
        writer.interface(&InterfaceStats::default());
        writer.layer(&LayerStats::default());
        writer.open_files(&OpenFiles::default());
        writer.seen(1_000_000_000);

        let descriptors = metric_descriptors();
        let labels: HashMap<_, _> = descriptors
            .iter()
            .map(|it| (it.name.as_str(), it.label_keys.len()))
            .collect();
        let mut series = HashSet::new();
        for metric in &writer.metrics {
            assert_eq!(
                labels.get(metric.name.as_str()),
                Some(&metric.label_values.len()),
                "{}",
                metric.name
            );
            assert!(series.insert((&metric.name, &metric.label_values)));
        }
        let value = |name: &str| {
            let found = writer.metrics.iter().find(|metric| metric.name == name);
            found.and_then(|metric| metric.value).map(|it| it.value)
        };
        assert_eq!(value("container_cpu_usage_seconds_total"), Some(2));
        assert_eq!(value("container_last_seen"), Some(5));
        // The rest is what limits() writes.
        let written: HashSet<_> = writer.metrics.iter().map(|it| it.name.as_str()).collect();
        let unwritten = labels.keys().filter(|name| !written.contains(**name));
        assert!(
            unwritten
                .into_iter()
                .all(|name| name.starts_with("container_spec_"))
        );
    }
}

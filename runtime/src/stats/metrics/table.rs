//! What can be told: names, kinds and labels, as cAdvisor has them.

use isopod_proto::cri::{MetricDescriptor, MetricType};

/// Labels of every metric; those of its own come behind them.
pub(super) const BASE_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// One metric.
pub(super) struct Metric {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: MetricType,
    /// Beyond [`BASE_LABELS`].
    pub(super) labels: &'static [&'static str],
}

impl Metric {
    /// As the CRI describes it.
    pub(super) fn descriptor(&self) -> MetricDescriptor {
        let labels = BASE_LABELS.iter().chain(self.labels);
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: labels.map(|&label| label.to_owned()).collect(),
        }
    }
}

macro_rules! metrics {
    ($($constant:ident $kind:ident $name:literal $labels:tt $help:literal;)*) => {
        $(pub(super) const $constant: Metric = Metric {
            name: $name,
            help: $help,
            kind: MetricType::$kind,
            labels: &$labels,
        };)*

        /// All there are.
        pub(super) const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    CPU_USAGE Counter "container_cpu_usage_seconds_total" ["cpu"]
        "Processor time used, in seconds.";
    CPU_USER Counter "container_cpu_user_seconds_total" []
        "Processor time used in user mode, in seconds.";
    CPU_SYSTEM Counter "container_cpu_system_seconds_total" []
        "Processor time used by the kernel, in seconds.";
    CFS_PERIODS Counter "container_cpu_cfs_periods_total" []
        "Periods of processor time that have passed under a quota.";
    CFS_THROTTLED_PERIODS Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the quota was used up.";
    CFS_THROTTLED_SECONDS Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time without a processor because the quota was used up, in seconds.";
    PRESSURE_CPU_WAITING Counter "container_pressure_cpu_waiting_seconds_total" []
        "Time in which some tasks waited for a processor, in seconds.";
    PRESSURE_CPU_STALLED Counter "container_pressure_cpu_stalled_seconds_total" []
        "Time in which all tasks waited for a processor, in seconds.";
    PRESSURE_MEMORY_WAITING Counter "container_pressure_memory_waiting_seconds_total" []
        "Time in which some tasks waited for memory, in seconds.";
    PRESSURE_MEMORY_STALLED Counter "container_pressure_memory_stalled_seconds_total" []
        "Time in which all tasks waited for memory, in seconds.";
    PRESSURE_IO_WAITING Counter "container_pressure_io_waiting_seconds_total" []
        "Time in which some tasks waited for input or output, in seconds.";
    PRESSURE_IO_STALLED Counter "container_pressure_io_stalled_seconds_total" []
        "Time in which all tasks waited for input or output, in seconds.";
    MEMORY_CACHE Gauge "container_memory_cache" []
        "Page cache, in bytes.";
    MEMORY_RSS Gauge "container_memory_rss" []
        "Anonymous memory, in bytes.";
    MEMORY_SWAP Gauge "container_memory_swap" []
        "Swap used, in bytes.";
    MEMORY_MAPPED_FILE Gauge "container_memory_mapped_file" []
        "Mapped files, in bytes.";
    MEMORY_KERNEL Gauge "container_memory_kernel_usage" []
        "Memory of the kernel, in bytes.";
    MEMORY_ACTIVE_FILE Gauge "container_memory_total_active_file_bytes" []
        "Page cache used lately, in bytes.";
    MEMORY_INACTIVE_FILE Gauge "container_memory_total_inactive_file_bytes" []
        "Page cache not used lately, in bytes.";
    MEMORY_USAGE Gauge "container_memory_usage_bytes" []
        "Memory used, page cache included, in bytes.";
    MEMORY_MAX_USAGE Gauge "container_memory_max_usage_bytes" []
        "Most memory that was ever used, in bytes.";
    MEMORY_WORKING_SET Gauge "container_memory_working_set_bytes" []
        "Memory used without page cache that was not used lately, in bytes.";
    MEMORY_FAILCNT Counter "container_memory_failcnt" []
        "How often the memory limit was hit.";
    MEMORY_FAILURES Counter "container_memory_failures_total" ["failure_type", "scope"]
        "Page faults.";
    OOM_EVENTS Counter "container_oom_events_total" []
        "Processes killed because memory ran out.";
    FS_READS_BYTES Counter "container_fs_reads_bytes_total" ["device"]
        "Bytes read from disks.";
    FS_WRITES_BYTES Counter "container_fs_writes_bytes_total" ["device"]
        "Bytes written to disks.";
    FS_READS Counter "container_fs_reads_total" ["device"]
        "Reads from disks.";
    FS_WRITES Counter "container_fs_writes_total" ["device"]
        "Writes to disks.";
    FS_USAGE Gauge "container_fs_usage_bytes" ["device"]
        "What the writable layer takes, in bytes.";
    BLKIO Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Bytes moved to and from disks.";
    PROCESSES Gauge "container_processes" []
        "Processes.";
    THREADS Gauge "container_threads" []
        "Threads.";
    THREADS_MAX Gauge "container_threads_max" []
        "Most threads allowed; 0 if there is no limit.";
    FILE_DESCRIPTORS Gauge "container_file_descriptors" []
        "Open file descriptors.";
    SOCKETS Gauge "container_sockets" []
        "Open sockets.";
    ULIMITS_SOFT Gauge "container_ulimits_soft" ["ulimit"]
        "Soft limits of the first process.";
    SPEC_CPU_PERIOD Gauge "container_spec_cpu_period" []
        "Period of the processor quota, in microseconds.";
    SPEC_CPU_QUOTA Gauge "container_spec_cpu_quota" []
        "Processor quota, in microseconds.";
    SPEC_CPU_SHARES Gauge "container_spec_cpu_shares" []
        "Share of the processors.";
    SPEC_MEMORY_LIMIT Gauge "container_spec_memory_limit_bytes" []
        "Memory limit; 0 if there is none.";
    SPEC_MEMORY_RESERVATION Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory reservation; there is none.";
    SPEC_SWAP_LIMIT Gauge "container_spec_memory_swap_limit_bytes" []
        "Limit of memory and swap; 0 if there is none.";
    RX_BYTES Counter "container_network_receive_bytes_total" ["interface"]
        "Bytes received.";
    RX_PACKETS Counter "container_network_receive_packets_total" ["interface"]
        "Packets received.";
    RX_ERRORS Counter "container_network_receive_errors_total" ["interface"]
        "Errors while receiving.";
    RX_DROPPED Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Received packets that were dropped.";
    TX_BYTES Counter "container_network_transmit_bytes_total" ["interface"]
        "Bytes sent.";
    TX_PACKETS Counter "container_network_transmit_packets_total" ["interface"]
        "Packets sent.";
    TX_ERRORS Counter "container_network_transmit_errors_total" ["interface"]
        "Errors while sending.";
    TX_DROPPED Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets to send that were dropped.";
    START_TIME Gauge "container_start_time_seconds" []
        "When it was started, in seconds since the epoch.";
    LAST_SEEN Gauge "container_last_seen" []
        "When this was measured, in seconds since the epoch.";
}

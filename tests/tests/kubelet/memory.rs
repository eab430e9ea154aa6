//! A pod's memory: its limits and the overhead of the RuntimeClass are room enough for its machine.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use isopod_tests::kubelet::{Kubelet, cgroup, container, deploy, pod, restarts, run};
use isopod_tests::network::isolated;
use isopod_tests::node::Options;
use serde_json::json;

const MIB: u64 = 1 << 20;

/// What of the overhead is the VMM's own.
const VMM: u64 = 16 * MIB;

/// Holds 60 of 96 MiB, then 92, while files have the rest.
const USE: &str = "head -c 62914560 /dev/zero > /dev/shm/held && \
    for i in 1 2 3; do head -c 16777216 /dev/zero > /file$i; done && \
    dd if=/dev/zero of=/dev/null bs=32M count=1 && rm /file*";

#[test]
fn a_pod_that_uses_all_of_its_memory_stays_within_limits_and_overhead() -> Result<()> {
    isolated(|| {
        run(Options::kvm(), &json!({}), |kubelet| {
            let resources = json!({ "resources": { "limits": { "memory": "96Mi" } } });
            let main = container("main", "exec sleep 10000", &resources);
            let spec = json!({ "containers": [main], "overhead": deploy::overhead()? });
            kubelet.add(&pod("full", &spec))?;
            let ready = kubelet.wait_ready("full")?;
            let uid = ready["metadata"]["uid"].as_str().context("no uid")?;
            let cgroup = cgroup(uid).context("no cgroup")?;
            let limit = number(&cgroup.join("memory.max"))?;
            let guest = in_guest(kubelet, "MemTotal:")?;
            ensure!(guest + VMM <= limit, "{guest} bytes do not fit in {limit}");
            kubelet.exec("full", "main", USE)?;
            let left = in_guest(kubelet, "MemAvailable:")?;
            println!("{left} of {guest} bytes are left in the guest");
            let events = fs::read_to_string(cgroup.join("memory.events"))?;
            ensure!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
            let events = kubelet.exec("full", "main", "cat /sys/fs/cgroup/memory.events")?;
            ensure!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
            let pod = kubelet.wait_ready("full")?;
            assert_eq!(restarts(&pod, "main"), 0);
            Ok(())
        })
    })
}

fn number(file: &Path) -> Result<u64> {
    Ok(fs::read_to_string(file)?.trim().parse()?)
}

/// A line of the guest's `/proc/meminfo`, in bytes.
fn in_guest(kubelet: &Kubelet<'_>, name: &str) -> Result<u64> {
    let meminfo = kubelet.exec("full", "main", "cat /proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let kib: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .with_context(|| format!("no {name}"))?
        .parse()?;
    Ok(kib * 1024)
}

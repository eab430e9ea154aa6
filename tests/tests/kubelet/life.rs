//! A pod's life: init container, sidecar, volumes, probes, limits, statistics, and a graceful end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use isopod_tests::kubelet::{Kubelet, cgroup, container, deploy, is, pod, restarts, run, status};
use isopod_tests::network::isolated;
use isopod_tests::node::Options;
use isopod_tests::wait::wait_for;
use prometheus_parse::{Sample, Value as Parsed};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// What the pods of these tests share with the test.
struct Folders {
    /// Laid out as the kubelet lays out a ConfigMap's volume.
    config: PathBuf,
    /// Written to by both.
    out: PathBuf,
}

impl Folders {
    fn new(kubelet: &Kubelet<'_>) -> Result<Self> {
        let folders = Self {
            config: kubelet.test_folder("config")?,
            out: kubelet.test_folder("out")?,
        };
        symlink("..data/greeting", folders.config.join("greeting"))?;
        folders.configure("one", "hello")?;
        Ok(folders)
    }

    /// Changes the configuration in one step, as the kubelet does.
    fn configure(&self, version: &str, greeting: &str) -> Result<()> {
        let version = format!("..{version}");
        fs::create_dir(self.config.join(&version))?;
        fs::write(self.config.join(&version).join("greeting"), greeting)?;
        symlink(&version, self.config.join("..new"))?;
        Ok(fs::rename(
            self.config.join("..new"),
            self.config.join("..data"),
        )?)
    }

    fn volumes(&self) -> Value {
        let folder = |path: &Path| json!({ "path": path, "type": "Directory" });
        json!([
            { "name": "config", "hostPath": folder(&self.config) },
            { "name": "out", "hostPath": folder(&self.out) },
            { "name": "work", "emptyDir": {} },
        ])
    }
}

fn mounts() -> Value {
    json!([
        { "name": "config", "mountPath": "/config", "readOnly": true },
        { "name": "out", "mountPath": "/out" },
        { "name": "work", "mountPath": "/work" },
    ])
}

fn exec(script: &str) -> Value {
    json!({ "command": ["/bin/sh", "-c", script] })
}

/// A probe that is made every three seconds, and whose third failure counts. On a slow machine, one may
/// fail by taking too long.
fn probe(handler: &str, how: &Value) -> Value {
    json!({ handler: how, "periodSeconds": 3, "timeoutSeconds": 60, "failureThreshold": 3 })
}

/// Little is asked for: the machine may have one processor for all pods.
fn limits(memory: &str) -> Value {
    let limits = json!({ "memory": memory, "cpu": "500m" });
    json!({ "limits": limits, "requests": { "memory": memory, "cpu": "10m" } })
}

/// A pod whose parts wait for each other, and which is ready when the test says so.
fn whole(folders: &Folders) -> Result<Value> {
    let mounts = mounts();
    let init = "cat /config/greeting > /work/init";
    let more = json!({ "volumeMounts": mounts, "resources": limits("32Mi") });
    let init = container("init", init, &more);
    let sidecar = "test -f /work/init || exit 9; echo sidecar > /work/sidecar; \
        trap 'echo sidecar ends >> /out/order; exit 0' TERM; while :; do sleep 0.2; done";
    let more = json!({
        "restartPolicy": "Always", "volumeMounts": mounts, "resources": limits("32Mi"),
        "startupProbe": probe("exec", &exec("test -f /work/sidecar")),
    });
    let sidecar = container("sidecar", sidecar, &more);
    let main = "test -f /work/sidecar || exit 8; \
        trap 'echo main ends >> /out/order; exit 0' TERM; while :; do sleep 0.2; done";
    let more = json!({
        "volumeMounts": mounts, "resources": limits("96Mi"),
        "lifecycle": { "preStop": { "exec": exec("echo before >> /out/order") } },
        "readinessProbe": probe("exec", &exec("test -f /out/ready")),
        "livenessProbe": probe("exec", &exec("test -d /out")),
    });
    let main = container("main", main, &more);
    Ok(pod(
        "whole",
        &json!({
            "initContainers": [init, sidecar], "containers": [main], "volumes": folders.volumes(),
            "overhead": deploy::overhead()?, "terminationGracePeriodSeconds": 120,
        }),
    ))
}

/// A pod that serves HTTP on two ports; on the second one only until it finds a file.
fn web(folders: &Folders) -> Value {
    let script = "httpd -f -p 8080 -h /out & httpd -f -p 8081 -h /out & second=$!; \
        while :; do sleep 0.2; test -f /out/closed && rm /out/closed && kill $second; done";
    let more = json!({
        "volumeMounts": mounts(),
        "readinessProbe": probe("httpGet", &json!({ "path": "/served", "port": 8080 })),
        "livenessProbe": probe("tcpSocket", &json!({ "port": 8081 })),
    });
    let main = container("main", script, &more);
    pod(
        "web",
        &json!({ "containers": [main], "volumes": folders.volumes() }),
    )
}

#[test]
fn a_pod_lives_from_its_init_container_to_its_pre_stop_hook() -> Result<()> {
    isolated(|| {
        run(Options::kvm(), &json!({}), |kubelet| {
            let folders = Folders::new(kubelet)?;
            kubelet.add(&whole(&folders)?)?;
            kubelet.add(&web(&folders))?;
            starts_in_order(kubelet, &folders)?;
            probes_decide(kubelet, &folders)?;
            limits_hold(kubelet)?;
            summary_has_figures(kubelet)?;
            metrics_have_figures(kubelet)?;
            ends_in_order(kubelet, &folders)
        })
    })
}

fn starts_in_order(kubelet: &Kubelet<'_>, folders: &Folders) -> Result<()> {
    let pod = kubelet.wait_pod("whole", "its main container to run", |pod| {
        status(pod, "main").is_some_and(|main| main["started"] == true)
    })?;
    let init = &status(&pod, "init").context("no init container")?["state"]["terminated"];
    assert_eq!(
        (&init["exitCode"], &init["reason"]),
        (&json!(0), &json!("Completed"))
    );
    for container in ["init", "sidecar", "main"] {
        assert_eq!(restarts(&pod, container), 0, "{container}");
    }
    ensure!(is(&pod, "Initialized") && !is(&pod, "Ready"), "{pod:#}");
    assert_eq!(kubelet.exec("whole", "main", "cat /work/init")?, "hello");
    folders.configure("two", "good morning")?;
    assert_eq!(
        kubelet.exec("whole", "main", "cat /config/greeting")?,
        "good morning"
    );
    Ok(())
}

/// Exec, HTTP and TCP.
fn probes_decide(kubelet: &Kubelet<'_>, folders: &Folders) -> Result<()> {
    fs::write(folders.out.join("ready"), "")?;
    kubelet.wait_ready("whole")?;
    let web = kubelet.wait_pod("web", "to run", |pod| pod["status"]["phase"] == "Running")?;
    ensure!(!is(&web, "Ready"), "ready without the file that is probed");
    fs::write(folders.out.join("served"), "yes")?;
    kubelet.wait_ready("web")?;
    fs::remove_file(folders.out.join("served"))?;
    kubelet.wait_pod("web", "not to be ready", |pod| !is(pod, "Ready"))?;
    fs::write(folders.out.join("served"), "yes")?;
    fs::write(folders.out.join("closed"), "")?;
    let web = kubelet.wait_pod("web", "a restart", |pod| restarts(pod, "main") == 1)?;
    let last = &status(&web, "main").context("no container")?["lastState"]["terminated"];
    // The shell does not listen to SIGTERM.
    assert_eq!(last["exitCode"], 137, "{web:#}");
    kubelet.wait_ready("web")?;
    Ok(())
}

/// In the guest's cgroup, and in the pod's on the host with the overhead of the `RuntimeClass`.
fn limits_hold(kubelet: &Kubelet<'_>) -> Result<()> {
    let file = |container: &str, name: &str| {
        kubelet.exec("whole", container, &format!("cat /sys/fs/cgroup/{name}"))
    };
    assert_eq!(file("main", "memory.max")?, (96 * MIB).to_string());
    assert_eq!(file("sidecar", "memory.max")?, (32 * MIB).to_string());
    assert_eq!(file("main", "cpu.max")?, "50000 100000");
    let pod = kubelet.pod("whole")?.context("no pod")?;
    let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
    let cgroup = cgroup(uid).with_context(|| format!("no cgroup of pod {uid}"))?;
    let overhead = deploy::overhead()?;
    let overhead = overhead["memory"].as_str().context("no memory")?;
    let overhead: u64 = overhead.trim_end_matches("Mi").parse()?;
    let limit = fs::read_to_string(cgroup.join("memory.max"))?;
    assert_eq!(limit.trim(), ((96 + 32 + overhead) * MIB).to_string());
    let used: u64 = fs::read_to_string(cgroup.join("memory.current"))?
        .trim()
        .parse()?;
    ensure!(
        used > 16 * MIB,
        "{used} bytes: the guest is not in {}",
        cgroup.display()
    );
    Ok(())
}

/// The entry of a list with this name.
fn named<'a>(list: &'a Value, pointer: &str, name: &str) -> Result<&'a Value> {
    let mut entries = list.as_array().into_iter().flatten();
    entries
        .find(|entry| entry.pointer(pointer).is_some_and(|it| it == name))
        .with_context(|| format!("no {name} in {list:#}"))
}

/// `/stats/summary`, which evictions go by.
fn summary_has_figures(kubelet: &Kubelet<'_>) -> Result<()> {
    kubelet.exec(
        "whole",
        "main",
        "head -c 20971520 /dev/zero > /dev/shm/held",
    )?;
    kubelet.exec("whole", "main", "head -c 3145728 /dev/zero > /written")?;
    let mut last = String::new();
    let found = wait_for(
        "figures in /stats/summary",
        isopod_tests::wait::LIMIT,
        || match figures(kubelet) {
            Ok(()) => Some(()),
            Err(error) => {
                last = format!("{error:#}");
                None
            }
        },
    );
    found.context(last)
}

fn figures(kubelet: &Kubelet<'_>) -> Result<()> {
    let summary = kubelet.json("/stats/summary")?;
    let at_least = |of: &Value, pointer: &str, least: u64| {
        let value = of.pointer(pointer).and_then(Value::as_u64);
        ensure!(value >= Some(least), "{pointer} is {value:?} in {of:#}");
        Ok(())
    };
    at_least(&summary, "/node/fs/capacityBytes", MIB)?;
    at_least(&summary, "/node/memory/availableBytes", MIB)?;
    at_least(&summary, "/node/runtime/imageFs/capacityBytes", MIB)?;
    at_least(&summary, "/node/runtime/imageFs/usedBytes", MIB)?;
    let pod = named(&summary["pods"], "/podRef/name", "whole-node")?;
    at_least(pod, "/cpu/usageCoreNanoSeconds", 1_000_000)?;
    at_least(pod, "/memory/workingSetBytes", 20 * MIB)?;
    at_least(pod, "/network/rxBytes", 1)?;
    at_least(pod, "/ephemeral-storage/usedBytes", 3 * MIB)?;
    at_least(pod, "/process_stats/process_count", 2)?;
    named(&pod["volume"], "/name", "work")?;
    let main = named(&pod["containers"], "/name", "main")?;
    at_least(main, "/cpu/usageCoreNanoSeconds", 1_000_000)?;
    at_least(main, "/memory/workingSetBytes", 20 * MIB)?;
    at_least(main, "/rootfs/usedBytes", 3 * MIB)?;
    at_least(main, "/logs/capacityBytes", MIB)?;
    named(&pod["containers"], "/name", "sidecar")?;
    named(&summary["pods"], "/podRef/name", "web-node").map(drop)
}

/// `/metrics/cadvisor`, which monitoring goes by, and `/metrics/resource`, which autoscaling does.
fn metrics_have_figures(kubelet: &Kubelet<'_>) -> Result<()> {
    let value = |samples: &[Sample], name: &str, container: &str| -> Result<f64> {
        let found = samples.iter().find(|sample| {
            sample.metric == name
                && sample.labels.get("pod") == Some("whole-node")
                && sample.labels.get("container").unwrap_or_default() == container
        });
        match found.map(|sample| &sample.value) {
            Some(Parsed::Gauge(value) | Parsed::Counter(value) | Parsed::Untyped(value)) => {
                Ok(*value)
            }
            other => anyhow::bail!("{name} of {container:?} is {other:?}"),
        }
    };
    let held = 20e6..128e6;
    let cadvisor = kubelet.metrics("/metrics/cadvisor")?.samples;
    let memory = value(&cadvisor, "container_memory_working_set_bytes", "main")?;
    ensure!(held.contains(&memory), "{memory}");
    ensure!(value(&cadvisor, "container_cpu_usage_seconds_total", "main")? > 0.0);
    ensure!(value(&cadvisor, "container_spec_memory_limit_bytes", "main")? > 1e8);
    ensure!(value(&cadvisor, "container_network_receive_bytes_total", "")? > 0.0);
    let resource = kubelet.metrics("/metrics/resource")?.samples;
    let memory = value(&resource, "container_memory_working_set_bytes", "main")?;
    ensure!(held.contains(&memory), "{memory}");
    ensure!(value(&resource, "container_cpu_usage_seconds_total", "main")? > 0.0);
    Ok(())
}

/// Hook, main container, sidecar; then nothing is left.
fn ends_in_order(kubelet: &Kubelet<'_>, folders: &Folders) -> Result<()> {
    let pod = kubelet.pod("whole")?.context("no pod")?;
    let uid = pod["metadata"]["uid"]
        .as_str()
        .context("no uid")?
        .to_owned();
    kubelet.remove("whole")?;
    kubelet.remove("web")?;
    kubelet.wait_gone("whole")?;
    kubelet.wait_gone("web")?;
    let order = fs::read_to_string(folders.out.join("order"))?;
    assert_eq!(order, "before\nmain ends\nsidecar ends\n");
    wait_for(
        "the pod's cgroup and folder to go",
        isopod_tests::wait::LIMIT,
        || {
            let folder = Path::new("/var/lib/kubelet/pods").join(&uid);
            (!folder.exists() && cgroup(&uid).is_none()).then_some(())
        },
    )
}

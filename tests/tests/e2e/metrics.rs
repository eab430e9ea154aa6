//! cAdvisor's metrics from the CRI, and the daemon's own from its endpoint.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isopod_tests::node::{self, Node, Options, shell};
use isopod_tests::wait::LIMIT;
use prometheus_parse::{Scrape, Value as Parsed};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Metrics by name, and within a name by the labels of its own, in `crictl metricsp`.
fn values(metrics: &Value) -> Result<HashMap<(String, String), u64>> {
    let metrics = metrics.as_array().context("no metrics")?;
    let value = |metric: &Value| -> Result<_> {
        let name = metric["name"].as_str().context("a metric without a name")?;
        let labels = metric["labelValues"].as_array().context("no labels")?;
        let own: Vec<_> = labels.iter().skip(6).filter_map(Value::as_str).collect();
        // protojson leaves zeros out.
        let value = metric["value"]["value"].as_str().unwrap_or("0").parse()?;
        Ok(((name.to_owned(), own.join(",")), value))
    };
    metrics.iter().map(value).collect()
}

#[test]
fn crictl_shows_metrics_that_agree_with_the_containers_cgroup() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("measured")?;
        let script = "exec 3</dev/null; sleep 10000 & sleep 10000 & wait";
        let id = node.start(&pod, shell("main", script))?;
        node.exec(&id, "head -c 10485760 /dev/zero > /dev/shm/held")?;
        node.exec(&id, "head -c 3145728 /dev/zero > /written")?;
        let crictl = node.crictl()?;
        let vmm = node.vmm(&pod)?.pid;
        let info = crictl.json(&["inspect", &id])?["info"].take();
        assert_eq!(info["pid"], vmm);
        assert_eq!(info["sandboxID"], pod.as_str());
        let process = &info["runtimeSpec"]["process"];
        assert_eq!(process["args"], json!(["/bin/sh", "-c", script]));
        let info = crictl.json(&["inspectp", &pod])?["info"].take();
        assert_eq!(info["pid"], vmm);
        assert_eq!(info["runtimeHandler"], "isopod");
        let descriptors: Value = serde_json::from_str(&crictl.run(&["metricdescs"])?)?;
        let described = descriptors["descriptors"].as_array().map(Vec::len);
        ensure!(described > Some(40), "{descriptors}");
        let pods: Value = serde_json::from_str(&crictl.run(&["metricsp"])?)?;
        let told = &pods["podMetrics"][0];
        assert_eq!(told["podSandboxId"], pod.as_str());
        let container = &told["containerMetrics"][0];
        assert_eq!(container["containerId"], id.as_str());
        let container = values(&container["metrics"])?;
        let of = |name: &str, own: &str| -> Result<u64> {
            let found = container.get(&(name.to_owned(), own.to_owned()));
            found.copied().with_context(|| format!("no {name}"))
        };
        let held = of("container_memory_working_set_bytes", "")?;
        ensure!((10 * MIB..64 * MIB).contains(&held), "{held}");
        let written = of("container_fs_usage_bytes", "")?;
        ensure!((3 * MIB..4 * MIB).contains(&written), "{written}");
        assert_eq!(of("container_processes", "")?, 3);
        assert_eq!(of("container_threads", "")?, 3);
        ensure!(of("container_file_descriptors", "")? >= 9);
        assert_eq!(of("container_sockets", "")?, 0);
        ensure!(of("container_ulimits_soft", "max_open_files")? > 0);
        ensure!(of("container_memory_failures_total", "pgfault,container")? > 0);
        ensure!(of("container_start_time_seconds", "")? <= of("container_last_seen", "")?);
        let whole = values(&told["metrics"])?;
        let name = (
            "container_memory_working_set_bytes".to_owned(),
            String::new(),
        );
        ensure!(whole.get(&name).is_some_and(|bytes| *bytes + MIB >= held));
        Ok(())
    })
}

fn scrape(node: &Node) -> Result<Scrape> {
    let log = node.daemon_log();
    let line = log.lines().find(|line| line.contains(": metrics "));
    let address = line.and_then(|line| line.split("address=").nth(1));
    let address: SocketAddr = address.context("no address in the log")?.trim().parse()?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no header")?;
    Ok(Scrape::parse(body.lines().map(|line| Ok(line.to_owned())))?)
}

fn gauge(scrape: &Scrape, name: &str) -> Result<f64> {
    let found = scrape.samples.iter().find(|sample| sample.metric == name);
    match found.map(|sample| &sample.value) {
        Some(Parsed::Gauge(value)) => Ok(*value),
        other => anyhow::bail!("{name} is {other:?}"),
    }
}

#[test]
fn the_daemons_endpoint_tells_what_machines_cost() -> Result<()> {
    node::run(Options::kvm().metrics("127.0.0.1:0"), |node| {
        let none = scrape(node)?;
        assert_eq!(gauge(&none, "isopod_vmm_resident_bytes")?.to_bits(), 0);
        let pod = node.busybox_pod("costs")?;
        let id = node.start(&pod, shell("main", "exec sleep 10000"))?;
        let before = gauge(&scrape(node)?, "isopod_vmm_resident_bytes")?;
        ensure!((1e7..1e9).contains(&before), "{before}");
        // What the guest touches, the host pays for.
        node.exec(&id, "head -c 52428800 /dev/zero > /dev/shm/held")?;
        std::thread::sleep(Duration::from_secs(1));
        let after = gauge(&scrape(node)?, "isopod_vmm_resident_bytes")?;
        ensure!(after > before + 3e7, "{before} then {after}");
        assert_eq!(
            gauge(&scrape(node)?, "isopod_vmms")?.to_bits(),
            1f64.to_bits()
        );
        Ok(())
    })
}

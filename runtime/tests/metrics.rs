//! Metrics, of pods over the CRI and of the daemon over HTTP, on a VMM that boots nothing.

mod fake;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{
    ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest, StreamPodSandboxMetricsRequest,
};
use isopod_tests::node::{Node, image, pod_config, shell};
use prometheus_parse::{Sample, Scrape, Value};
use tonic::Response;

use self::fake::{START_TIMEOUT_MS, on_fake, on_fake_with};

/// How long the endpoint may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A name that would end a label and begin a sample, if somebody let it.
const HOSTILE: &str = "x\"} 1\nisopod_sandboxes{state=\"forged\"} 9\n# {\\";

fn on_measured(test: impl FnOnce(&Node) -> Result<()>) -> Result<()> {
    on_fake_with(|options| options.metrics("127.0.0.1:0"), test)
}

fn address(node: &Node) -> Result<SocketAddr> {
    let log = node.daemon_log();
    let line = log.lines().find(|line| line.contains(": metrics "));
    let address = line.and_then(|line| line.split("address=").nth(1));
    let address = address.with_context(|| format!("no address of the metrics in {log}"))?;
    Ok(address
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .parse()?)
}

fn request(node: &Node, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address(node)?, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn scrape(node: &Node) -> Result<Vec<Sample>> {
    let answer = request(node, "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no header")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    ensure!(body.ends_with("# EOF\n"), "{body}");
    let lines = body.lines().map(|line| Ok(line.to_owned()));
    Ok(Scrape::parse(lines)?.samples)
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let found = samples.iter().find(|sample| {
        let has = |(key, value): &(&str, &str)| sample.labels.get(key) == Some(value);
        sample.metric == name && labels.iter().all(has)
    })?;
    match found.value {
        Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => Some(value),
        Value::Histogram(_) | Value::Summary(_) => None,
    }
}

#[test]
fn calls_states_and_failures_are_counted_and_names_make_no_series() -> Result<()> {
    on_measured(|node| {
        node.cri().pull(&image("busybox"))?;
        let mut config = pod_config(node, "plain");
        let pod = node.cri().run_pod(config.clone())?;
        node.cri().pod_status("ffff").unwrap_err();
        let before = scrape(node)?;

        // What a pod calls itself is nowhere to be seen.
        if let Some(metadata) = &mut config.metadata {
            metadata.name = HOSTILE.to_owned();
            metadata.namespace = HOSTILE.to_owned();
        }
        config.labels = [(HOSTILE.to_owned(), HOSTILE.to_owned())].into();
        config.annotations = config.labels.clone();
        let hostile = node.cri().run_pod(config.clone())?;
        let mut main = shell(HOSTILE, "exec sleep 1000");
        main.log_path = "main.log".to_owned();
        let container = node.cri().create(&hostile, main, config)?;
        node.cri().start(&container)?;
        node.cri().pod_status("ffff").unwrap_err();
        let after = scrape(node)?;

        let state = |samples: &[Sample], name, state| value(samples, name, &[("state", state)]);
        assert_eq!(state(&before, "isopod_sandboxes", "ready"), Some(1.0));
        assert_eq!(state(&after, "isopod_sandboxes", "ready"), Some(2.0));
        assert_eq!(state(&after, "isopod_sandboxes", "forged"), None);
        assert_eq!(state(&after, "isopod_containers", "running"), Some(1.0));
        assert_eq!(state(&after, "isopod_containers", "exited"), Some(0.0));
        assert_eq!(value(&after, "isopod_vmms", &[]), Some(2.0));
        ensure!(value(&after, "isopod_vmm_resident_bytes", &[]) > Some(1e6));
        let failed = [("method", "PodSandboxStatus"), ("code", "NOT_FOUND")];
        assert_eq!(
            value(&after, "isopod_cri_failures_total", &failed),
            Some(2.0)
        );
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        assert_eq!(value(&after, "isopod_build_info", &version), Some(1.0));
        let histogram = |samples: &[Sample], name: &str, label: (&str, &str)| {
            let found = samples
                .iter()
                .find(|it| it.metric == name && it.labels.get(label.0) == Some(label.1));
            found.map(|sample| sample.value.clone())
        };
        let name = "isopod_cri_request_duration_seconds";
        let count = |samples: &[Sample]| match histogram(samples, name, ("method", "RunPodSandbox"))
        {
            Some(Value::Histogram(buckets)) => buckets.last().map(|bucket| bucket.count),
            _ => None,
        };
        assert_eq!((count(&before), count(&after)), (Some(1.0), Some(2.0)));
        let pulls = histogram(
            &after,
            "isopod_image_pull_duration_seconds",
            ("result", "ok"),
        );
        ensure!(matches!(pulls, Some(Value::Histogram(_))), "{pulls:?}");

        let keys = |samples: &[Sample]| -> BTreeSet<String> {
            let key = |sample: &Sample| format!("{} {:?}", sample.metric, sample.labels);
            samples.iter().map(key).collect()
        };
        let (before, after) = (keys(&before), keys(&after));
        let new: Vec<_> = after.difference(&before).collect();
        ensure!(
            new.iter().all(|key| key.contains("method")),
            "only methods that were called: {new:?}"
        );
        node.cri().remove_pod(&hostile)?;
        node.cri().remove_pod(&pod)?;
        Ok(())
    })
}

#[test]
fn endpoint_answers_for_one_path_and_survives_nonsense() -> Result<()> {
    on_measured(|node| {
        let status = |text: &str| -> Result<String> {
            let answer = request(node, text)?;
            Ok(answer.lines().next().unwrap_or_default().to_owned())
        };
        ensure!(status("GET / HTTP/1.1\r\nHost: n\r\n\r\n")?.contains("404"));
        ensure!(status("POST /metrics HTTP/1.1\r\nHost: n\r\n\r\n")?.contains("405"));
        let long = format!(
            "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n",
            "x".repeat(100_000)
        );
        // Refused or cut off, whichever comes first.
        let refused = status(&long);
        ensure!(
            refused.as_ref().map_or(true, |line| !line.contains("200")),
            "{refused:?}"
        );
        let silent: Vec<_> = (0..8)
            .map(|_| TcpStream::connect(address(node)?).context("connecting"))
            .collect::<Result<_>>()?;
        ensure!(
            !scrape(node)?.is_empty(),
            "beside connections that say nothing"
        );
        drop(silent);
        Ok(())
    })
}

#[test]
fn metrics_of_pods_fit_their_descriptors_whatever_the_pods_are_called() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        node.cri().pull(&image("busybox"))?;
        let mut config = pod_config(node, "plain");
        if let Some(metadata) = &mut config.metadata {
            metadata.name = HOSTILE.to_owned();
        }
        let pod = node.cri().run_pod(config.clone())?;
        let running = node
            .cri()
            .create(&pod, shell("run", "exec sleep 1000"), config.clone())?;
        node.cri().start(&running)?;
        let waiting = node.cri().create(&pod, shell("wait", "true"), config)?;
        let cri = node.cri();
        let descriptors = cri
            .runtime(async |mut cri| {
                let request = ListMetricDescriptorsRequest::default();
                cri.list_metric_descriptors(request).await
            })?
            .descriptors;
        let described: HashMap<_, _> = descriptors
            .iter()
            .map(|it| (it.name.as_str(), &it.label_keys))
            .collect();
        let pods = cri
            .runtime(async |mut cri| {
                let request = ListPodSandboxMetricsRequest::default();
                cri.list_pod_sandbox_metrics(request).await
            })?
            .pod_metrics;
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].pod_sandbox_id, pod);
        let told: Vec<_> = pods[0].container_metrics.iter().collect();
        assert_eq!(told.len(), 1, "{waiting} does not run");
        assert_eq!(told[0].container_id, running);
        let mut series = HashSet::new();
        for metric in pods[0].metrics.iter().chain(&told[0].metrics) {
            let keys = described.get(metric.name.as_str());
            let keys = keys.with_context(|| format!("{} is not described", metric.name))?;
            assert_eq!(keys.len(), metric.label_values.len(), "{}", metric.name);
            let pod_name = keys.iter().position(|key| key == "pod").context("no pod")?;
            assert_eq!(metric.label_values[pod_name], HOSTILE);
            ensure!(metric.timestamp > 0 && metric.value.is_some());
            ensure!(
                series.insert((&metric.name, &metric.label_values)),
                "{metric:?}"
            );
        }
        let streamed = cri.runtime(async |mut cri| {
            let request = StreamPodSandboxMetricsRequest::default();
            let mut stream = cri.stream_pod_sandbox_metrics(request).await?.into_inner();
            Ok(Response::new(stream.message().await?))
        })?;
        let streamed = streamed.context("no message")?.pod_sandbox_metrics;
        assert_eq!(streamed[0].pod_sandbox_id, pod);
        Ok(())
    })
}

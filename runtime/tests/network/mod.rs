//! Pods' networks: the daemon as a process with Debian's CNI plugins, and with plugins that misbehave,
//! on a VMM that boots nothing. Each test is a node with a network of its own.
//!
//! Needs root and `containernetworking-plugins`. That packets come through to guests is for the
//! end-to-end tests to show.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{
    NetworkConfig, PodSandboxConfig, PodSandboxState, PortMapping, RuntimeConfig,
    UpdateRuntimeConfigRequest,
};
use isopod_tests::network::{Cni, isolated, run};
use isopod_tests::node::{Node, assert_refused, pod_config};
use isopod_tests::wait::wait_for;
use serde_json::{Value, json};
use tonic::Code;

use crate::fake::on_fake_with;

const LIMIT: Duration = Duration::from_secs(30);

/// Writes what it was asked to the folder, and answers ADD with an address.
const RECORDER: &str = r#"
cat > "$FOLDER/$CNI_COMMAND.json"
env | grep ^CNI_ > "$FOLDER/$CNI_COMMAND.env"
echo "$CNI_COMMAND" >> "$FOLDER/verbs"
case $CNI_COMMAND in
  ADD) echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24"}]}';;
esac"#;

/// A test on a node whose pods join `cni`'s network, in a network of its own.
fn on_network(
    cni: &Cni,
    more: impl FnOnce(isopod_tests::node::Options) -> isopod_tests::node::Options,
    test: impl FnOnce(&Node) -> Result<()>,
) -> Result<()> {
    on_fake_with(|options| more(options.network(cni)), test)
}

fn plain(options: isopod_tests::node::Options) -> isopod_tests::node::Options {
    options
}

fn ips(node: &Node, pod: &str) -> Result<Vec<String>> {
    let status = node.cri().pod_status(pod)?.status.context("no status")?;
    let network = status.network.context("no network status")?;
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    let first = Some(network.ip).filter(|ip| !ip.is_empty());
    Ok(first.into_iter().chain(more).collect())
}

fn state(node: &Node, pod: &str) -> Result<PodSandboxState> {
    let status = node.cri().pod_status(pod)?.status.context("no status")?;
    Ok(status.state())
}

fn info(node: &Node, pod: &str) -> Result<Value> {
    let status = node.cri().pod_status(pod)?;
    Ok(serde_json::from_str(&status.info["info"])?)
}

/// The name of the pod's namespace.
fn netns(node: &Node, pod: &str) -> Result<String> {
    let info = info(node, pod)?;
    let path = info["network"]["netns"].as_str().context("no namespace")?;
    let name = path.strip_prefix("/run/netns/").context("elsewhere")?;
    Ok(name.to_owned())
}

fn namespaces() -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

fn network_condition(node: &Node) -> Result<(bool, String, String)> {
    let status = node.cri().status()?.status.context("no status")?;
    let mut conditions = status.conditions.into_iter();
    let network = conditions
        .find(|condition| condition.r#type == "NetworkReady")
        .context("no such condition")?;
    Ok((network.status, network.reason, network.message))
}

fn set_pod_cidr(node: &Node, range: &str) -> Result<()> {
    let network_config = NetworkConfig {
        pod_cidr: range.to_owned(),
    };
    let request = UpdateRuntimeConfigRequest {
        runtime_config: Some(RuntimeConfig {
            network_config: Some(network_config),
        }),
    };
    node.cri()
        .runtime(async |mut cri| cri.update_runtime_config(request).await)?;
    Ok(())
}

fn assert_no_trace(node: &Node, cni: &Cni) -> Result<()> {
    assert_eq!(node.cri().pods(None)?, []);
    assert_eq!(namespaces(), [] as [&str; 0]);
    assert_eq!(cni.leases(), [] as [&str; 0]);
    Ok(())
}

#[test]
fn pod_has_addresses_a_namespace_and_a_tap_until_it_is_stopped() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        let loopback = json!({ "type": "loopback" });
        cni.plugins(&[cni.bridge(&["10.7.0.0/24", "fd07::/64"]), loopback])?;
        on_network(&cni, plain, |node| {
            assert_eq!(
                network_condition(node)?,
                (true, String::new(), String::new())
            );
            let pod = node.busybox_pod("first")?;
            assert_eq!(ips(node, &pod)?, ["10.7.0.2", "fd07::2"]);
            let other = node.busybox_pod("second")?;
            assert_eq!(ips(node, &other)?[0], "10.7.0.3");

            let netns = netns(node, &pod)?;
            let links = run("ip", &["-n", &netns, "-o", "link"])?;
            let tap = links.lines().find(|line| line.contains(": tap"));
            assert!(tap.is_some_and(|tap| tap.contains("mtu 1500")), "{links}");
            assert!(links.contains(": lo: <LOOPBACK,UP"), "{links}");
            for (device, to) in [("eth0", "device tap"), ("tap", "device eth0")] {
                let name = links
                    .split_whitespace()
                    .find(|word| word.starts_with(device))
                    .context("no such device")?
                    .trim_end_matches(':');
                let name = name.split('@').next().context("a name")?;
                let filter = [
                    "-n", &netns, "filter", "show", "dev", name, "parent", "ffff:",
                ];
                let filter = run("tc", &filter)?;
                let redirected = filter.contains("Egress Redirect") && filter.contains(to);
                assert!(redirected && filter.contains("protocol all"), "{filter}");
            }
            assert_eq!(info(node, &pod)?["machine"]["nics"], json!(["eth0"]));

            node.cri().stop_pod(&pod)?;
            assert_eq!(ips(node, &pod)?, [] as [&str; 0]);
            assert!(!namespaces().contains(&netns));
            assert_eq!(cni.leases().len(), 2, "the other pod's");
            node.cri().stop_pod(&pod)?;
            node.cri().remove_pod(&pod)?;
            node.cri().remove_pod(&other)?;
            assert_no_trace(node, &cni)
        })
    })
}

#[test]
fn plugins_are_told_who_the_pod_is_and_what_it_asks_for() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.script(
            "recorder",
            &format!("{RECORDER}\nip -n ${{CNI_NETNS##*/}} link set eth0 up"),
        )?;
        // An interface first, since the recorder makes none.
        let capabilities = json!({
            "portMappings": true, "bandwidth": true, "dns": true, "ipRanges": true,
        });
        cni.plugins(&[
            cni.bridge(&["10.7.0.0/24"]),
            json!({ "type": "recorder", "capabilities": capabilities, "own": { "key": 1 } }),
        ])?;
        on_network(&cni, plain, |node| {
            set_pod_cidr(node, "10.8.0.0/16,fd08::/64")?;
            let mut config = pod_config(node, "told");
            config.port_mappings = vec![PortMapping {
                protocol: isopod_proto::cri::Protocol::Udp.into(),
                container_port: 53,
                host_port: 8053,
                host_ip: "127.0.0.1".into(),
            }];
            let annotation = "kubernetes.io/ingress-bandwidth".to_owned();
            config.annotations.insert(annotation, "10M".into());
            config.dns_config = Some(isopod_proto::cri::DnsConfig {
                servers: vec!["10.0.0.10".into()],
                searches: vec!["svc".into()],
                options: vec!["ndots:5".into()],
            });
            let metadata = config.metadata.clone().context("a pod has metadata")?;
            let pod = node.cri().run_pod(config)?;

            let told: Value = serde_json::from_str(&cni.read("ADD.json"))?;
            assert_eq!(told["name"], "pods");
            assert_eq!(told["cniVersion"], "1.0.0");
            assert_eq!(told["own"]["key"], 1);
            assert_eq!(told.get("capabilities"), None);
            assert_eq!(told["prevResult"]["interfaces"][2]["name"], "eth0");
            let runtime_config = &told["runtimeConfig"];
            assert_eq!(
                runtime_config["portMappings"],
                json!([{ "hostPort": 8053, "containerPort": 53, "protocol": "udp",
                         "hostIP": "127.0.0.1" }])
            );
            assert_eq!(runtime_config["bandwidth"]["ingressRate"], 10_000_000);
            assert_eq!(runtime_config["bandwidth"].get("egressRate"), None);
            assert_eq!(runtime_config["dns"]["servers"], json!(["10.0.0.10"]));
            let subnet = |range: &str| json!([{ "subnet": range }]);
            assert_eq!(
                runtime_config["ipRanges"],
                json!([subnet("10.8.0.0/16"), subnet("fd08::/64")])
            );
            let env = cni.read("ADD.env");
            for wanted in [
                format!("CNI_CONTAINERID={pod}\n"),
                "CNI_IFNAME=eth0\n".to_owned(),
                format!("CNI_NETNS=/run/netns/{}\n", netns(node, &pod)?),
                format!("CNI_PATH={}:/usr/lib/cni\n", cni.plugin_dir().display()),
                format!(
                    "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};\
                     K8S_POD_INFRA_CONTAINER_ID={pod};K8S_POD_UID={}\n",
                    metadata.namespace, metadata.name, metadata.uid
                ),
            ] {
                assert!(env.contains(&wanted), "{wanted}: {env}");
            }
            // The addresses are those of the last result.
            assert_eq!(ips(node, &pod)?, ["10.9.9.9"]);
            node.cri().stop_pod(&pod)?;
            let told: Value = serde_json::from_str(&cni.read("DEL.json"))?;
            assert_eq!(told["prevResult"]["ips"][0]["address"], "10.9.9.9/24");
            assert_eq!(&told["runtimeConfig"], runtime_config);
            set_pod_cidr(node, "")
        })
    })
}

#[test]
fn a_pod_leaves_the_network_that_it_joined_whatever_became_of_configuration_and_daemon()
-> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.script("recorder", RECORDER)?;
        let recorder = json!({ "type": "recorder" });
        cni.plugins(&[recorder, cni.bridge(&["10.7.0.0/24"])])?;
        on_network(&cni, plain, |node| {
            let pod = node.busybox_pod("survivor")?;
            node.kill_daemon();
            std::fs::remove_dir_all(cni.config_dir())?;
            node.start_daemon()?;
            assert_eq!(ips(node, &pod)?, ["10.7.0.2"]);
            // The network is checked, with what ADD answered.
            wait_for("CHECK", LIMIT, || {
                cni.read("verbs").contains("CHECK").then_some(())
            })?;
            let told: Value = serde_json::from_str(&cni.read("CHECK.json"))?;
            assert_eq!(told["prevResult"]["ips"][0]["address"], "10.7.0.2/24");
            assert!(!node.daemon_log().contains("a network is not what it was"));
            node.cri().remove_pod(&pod)?;
            assert_no_trace(node, &cni)?;
            assert!(cni.read("verbs").ends_with("DEL\n"));
            let refused = node.cri().run_pod(pod_config(node, "next"));
            assert_refused(
                refused,
                Code::FailedPrecondition,
                "no CNI network is configured",
            );
            Ok(())
        })
    })
}

#[test]
fn without_a_network_no_pod_starts_and_the_node_says_why() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        on_network(&cni, plain, |node| {
            let (ready, reason, message) = network_condition(node)?;
            assert!(!ready && reason == "NetworkPluginNotReady");
            assert!(
                message.contains("no CNI network is configured in"),
                "{message}"
            );
            let begun = Instant::now();
            let refused = node.cri().run_pod(pod_config(node, "early"));
            assert_refused(refused, Code::FailedPrecondition, "cni.enabled = false");
            ensure!(begun.elapsed() < LIMIT, "it waited for the guest");
            assert_no_trace(node, &cni)?;

            std::fs::write(cni.config_dir().join("00-bad.conflist"), "{\"name\": 1")?;
            let (_, _, message) = network_condition(node)?;
            assert!(message.contains("00-bad.conflist"), "{message}");
            cni.plugins(&[cni.bridge(&["10.7.0.0/24"])])?;
            assert!(network_condition(node)?.0, "a new file counts at once");
            node.busybox_pod("late")?;
            Ok(())
        })
    })
}

#[test]
fn a_plugin_that_is_missing_stops_a_pod_before_anything_is_made() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"]), json!({ "type": "nowhere" })])?;
        on_network(&cni, plain, |node| {
            let (ready, _, message) = network_condition(node)?;
            assert!(
                !ready && message.contains("\"nowhere\" is not in"),
                "{message}"
            );
            let refused = node.cri().run_pod(pod_config(node, "pod"));
            assert_refused(refused, Code::FailedPrecondition, "\"nowhere\" is not in");
            assert_no_trace(node, &cni)
        })
    })
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children_and_undone() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        let script =
            r#"[ "$CNI_COMMAND" = ADD ] || exit 0; sleep 1000 & echo $! > "$FOLDER/child"; wait"#;
        cni.script("hang", script)?;
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"]), json!({ "type": "hang" })])?;
        let quick = |options: isopod_tests::node::Options| options.cni("timeout_ms", 1500);
        on_network(&cni, quick, |node| {
            let refused = node.cri().run_pod(pod_config(node, "pod"));
            assert_refused(refused, Code::DeadlineExceeded, "\"hang\" did not end ADD");
            let child = cni.read("child").trim().parse()?;
            wait_for("the plugin's child to end", LIMIT, || {
                let gone = isopod_tests::process::Process::read(child);
                gone.is_none_or(|process| process.state == 'Z')
                    .then_some(())
            })?;
            assert_no_trace(node, &cni)
        })
    })
}

#[test]
fn a_plugin_that_talks_nonsense_is_told_apart_from_one_that_fails() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        let add = |script: &str| {
            cni.script(
                "odd",
                &format!("[ \"$CNI_COMMAND\" = ADD ] || exit 0; {script}"),
            )
        };
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"]), json!({ "type": "odd" })])?;
        on_network(&cni, plain, |node| {
            for (script, code, message) in [
                ("echo hello", Code::Internal, "something else than a result"),
                ("true", Code::Internal, "something else than a result"),
                ("echo '[1]'", Code::Internal, "something else than a result"),
                ("echo '{\"ips\":7}'", Code::Internal, "is not one"),
                (
                    "echo '{\"ips\":[{\"address\":\"x\"}]}'",
                    Code::Internal,
                    "\"x\"",
                ),
                ("yes | head -c 3000000", Code::Internal, "printed over"),
                (
                    "echo no luck >&2; exit 3",
                    Code::Internal,
                    "exit status: 3: no luck",
                ),
                (
                    "echo '{\"code\":11,\"msg\":\"later\",\"details\":\"please\"}'; exit 1",
                    Code::Unavailable,
                    "failed ADD: later: please",
                ),
                (
                    "echo '{\"code\":7,\"msg\":\"bad key\"}'; exit 1",
                    Code::FailedPrecondition,
                    "bad key",
                ),
                ("kill -9 $$", Code::Internal, "signal: 9"),
            ] {
                add(script)?;
                let refused = node.cri().run_pod(pod_config(node, "pod"));
                assert_refused(refused, code, message);
                assert_no_trace(node, &cni)?;
            }
            add("cat > /dev/null; echo '{\"cniVersion\":\"1.0.0\"}'")?;
            let pod = node.busybox_pod("pod").context("the node is well")?;
            assert_eq!(ips(node, &pod)?, [] as [&str; 0]);
            Ok(())
        })
    })
}

#[test]
fn addresses_that_run_out_are_given_again() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        // .1 is the gateway's, .2 the only other.
        cni.plugins(&[cni.bridge(&["10.7.0.0/30"])])?;
        on_network(&cni, plain, |node| {
            let pod = node.busybox_pod("only")?;
            let refused = node.cri().run_pod(pod_config(node, "second"));
            assert_refused(refused, Code::Internal, "no IP addresses available");
            assert_eq!(node.cri().pods(None)?.len(), 1);
            assert_eq!(namespaces().len(), 1);
            node.cri().remove_pod(&pod)?;
            let pod = node.busybox_pod("next")?;
            assert_eq!(ips(node, &pod)?, ["10.7.0.2"]);
            Ok(())
        })
    })
}

#[test]
fn a_del_that_fails_is_tried_again_at_removal() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        let script = r#"
            echo "$CNI_COMMAND" >> "$FOLDER/verbs"
            [ "$CNI_COMMAND" = DEL ] && [ -e "$FOLDER/stuck" ] && { echo stuck >&2; exit 1; }
            [ "$CNI_COMMAND" = ADD ] && [ -e "$FOLDER/broken" ] && { echo broken >&2; exit 1; }
            [ "$CNI_COMMAND" = ADD ] && echo '{"ips":[{"address":"10.9.9.9/24"}]}'
            exit 0"#;
        cni.script("sticky", script)?;
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"]), json!({ "type": "sticky" })])?;
        let mark = |name: &str| std::fs::write(cni.folder().join(name), "");
        let clear = |name: &str| std::fs::remove_file(cni.folder().join(name));
        on_network(&cni, plain, |node| {
            let pod = node.busybox_pod("pod")?;
            mark("stuck")?;
            assert_refused(
                node.cri().stop_pod(&pod),
                Code::Internal,
                "failed DEL: exit status: 1: stuck",
            );
            assert_eq!(state(node, &pod)?, PodSandboxState::SandboxNotready);
            assert_refused(node.cri().remove_pod(&pod), Code::Internal, "stuck");
            assert_eq!((namespaces().len(), cni.leases().len()), (1, 1));
            node.kill_daemon();
            node.start_daemon()?;
            assert_refused(node.cri().remove_pod(&pod), Code::Internal, "stuck");
            clear("stuck")?;
            node.cri().remove_pod(&pod)?;
            assert_no_trace(node, &cni)?;

            // A pod that never was, and cannot be undone, is there to be removed.
            mark("stuck")?;
            mark("broken")?;
            let refused = node.cri().run_pod(pod_config(node, "never"));
            assert_refused(
                refused,
                Code::Internal,
                "failed ADD: exit status: 1: broken",
            );
            let pods = node.cri().pods(None)?;
            let [left] = pods.as_slice() else {
                anyhow::bail!("{pods:?}")
            };
            assert_eq!(left.state(), PodSandboxState::SandboxNotready);
            assert_refused(node.cri().remove_pod(&left.id), Code::Internal, "stuck");
            // Nor by the next daemon.
            node.kill_daemon();
            node.start_daemon()?;
            assert_refused(node.cri().remove_pod(&left.id), Code::Internal, "stuck");
            clear("stuck")?;
            node.cri().remove_pod(&left.id)?;
            assert_no_trace(node, &cni)
        })
    })
}

#[test]
fn a_daemon_killed_while_a_pod_joins_leaves_nothing_to_the_next() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        let script = r#"
            echo "$CNI_COMMAND" >> "$FOLDER/verbs"
            if [ "$CNI_COMMAND" = ADD ]; then sleep 3; fi"#;
        cni.script("slow", script)?;
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"]), json!({ "type": "slow" })])?;
        on_network(&cni, plain, |node| {
            std::thread::scope(|scope| {
                let config: PodSandboxConfig = pod_config(node, "pod");
                let running = scope.spawn(move || node.cri().run_pod(config));
                wait_for("ADD", LIMIT, || {
                    cni.read("verbs").contains("ADD").then_some(())
                })?;
                assert_eq!((namespaces().len(), cni.leases().len()), (1, 1));
                node.kill_daemon();
                running.join().expect("no panic").unwrap_err();
                anyhow::Ok(())
            })?;
            node.start_daemon()?;
            assert!(cni.read("verbs").contains("DEL"));
            assert_no_trace(node, &cni)
        })
    })
}

#[test]
fn a_reboot_is_survived_by_what_has_to_be_undone() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.script("recorder", RECORDER)?;
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"]), json!({ "type": "recorder" })])?;
        on_network(&cni, plain, |node| {
            let pod = node.busybox_pod("pod")?;
            let netns = netns(node, &pod)?;
            // What a reboot does: processes, mounts and files in memory are gone.
            node.kill_daemon();
            for vmm in node.vmms() {
                vmm.kill();
            }
            run("umount", &["-l", &format!("/run/netns/{netns}")])?;
            std::fs::remove_file(format!("/run/netns/{netns}"))?;
            node.start_daemon()?;
            assert_eq!(state(node, &pod)?, PodSandboxState::SandboxNotready);
            node.cri().remove_pod(&pod)?;
            assert!(cni.read("DEL.env").contains("CNI_NETNS=\n"));
            assert_no_trace(node, &cni)
        })
    })
}

#[test]
fn a_network_of_version_1_1_is_asked_for_its_status_and_told_what_is_garbage() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        let script = format!(
            "{RECORDER}\n[ $CNI_COMMAND = STATUS ] && [ -e \"$FOLDER/ill\" ] && \
             {{ echo '{{\"code\":50,\"msg\":\"no daemon\"}}'; exit 1; }}; exit 0"
        );
        cni.script("recorder", &script)?;
        // Debian's plugins speak 1.0 at most.
        let network = |version: &str, plugins: Value| json!({ "cniVersion": version, "name": "pods", "plugins": plugins });
        cni.configure(&network("1.0.0", json!([cni.bridge(&["10.7.0.0/24"])])))?;
        on_network(&cni, plain, |node| {
            let pod = node.busybox_pod("pod")?;
            let recorder = json!([{ "type": "recorder" }]);
            cni.configure(&network("1.1.0", recorder.clone()))?;
            assert!(network_condition(node)?.0);
            assert!(cni.read("verbs").contains("STATUS"));
            std::fs::write(cni.folder().join("ill"), "")?;
            let (ready, _, message) = network_condition(node)?;
            assert!(!ready && message.contains("no daemon"), "{message}");

            node.stop_daemon()?;
            node.start_daemon()?;
            wait_for("GC", LIMIT, || {
                cni.read("verbs").contains("GC").then_some(())
            })?;
            wait_for("GC's words", LIMIT, || {
                (!cni.read("GC.json").is_empty()).then_some(())
            })?;
            let told: Value = serde_json::from_str(&cni.read("GC.json"))?;
            let valid = json!([{ "containerID": pod, "ifname": "eth0" }]);
            assert_eq!(told["cni.dev/valid-attachments"], valid);

            let mut shared = network("1.1.0", recorder);
            shared["disableGC"] = true.into();
            cni.configure(&shared)?;
            std::fs::write(cni.folder().join("verbs"), "")?;
            node.stop_daemon()?;
            node.start_daemon()?;
            std::thread::sleep(Duration::from_millis(500));
            assert!(!cni.read("verbs").contains("GC"));
            Ok(())
        })
    })
}

#[test]
fn loopback_only_pods_run_where_networks_are_disabled() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.plugins(&[cni.bridge(&["10.7.0.0/24"])])?;
        let disabled = |options: isopod_tests::node::Options| options.cni("enabled", false);
        on_network(&cni, disabled, |node| {
            let (ready, _, message) = network_condition(node)?;
            assert!(
                !ready && message.contains("cni.enabled is false"),
                "{message}"
            );
            let pod = node.busybox_pod("pod")?;
            assert_eq!(ips(node, &pod)?, [] as [&str; 0]);
            assert_eq!(namespaces(), [] as [&str; 0]);
            let mut config = pod_config(node, "port");
            config.port_mappings = vec![PortMapping {
                host_port: 80,
                container_port: 80,
                ..Default::default()
            }];
            let refused = node.cri().run_pod(config);
            assert_refused(refused, Code::InvalidArgument, "cni.enabled is false");
            Ok(())
        })
    })
}

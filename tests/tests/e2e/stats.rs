//! Statistics, compared with what containers see of themselves.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{
    ContainerConfig, ContainerStats, ContainerStatsFilter, LinuxContainerConfig,
    LinuxContainerResources, PodSandboxStatsFilter, UInt64Value,
};
use isopod_tests::network::{Cni, isolated};
use isopod_tests::node::{self, Node, Options, assert_refused, shell};
use isopod_tests::wait::{LIMIT, wait_for};
use tonic::Code;

const MIB: u64 = 1 << 20;

/// How long a writable layer's count is good for, with some to spare.
const COUNT_AGE: Duration = Duration::from_secs(12);

fn number(value: Option<UInt64Value>) -> Result<u64> {
    Ok(value.context("a number is absent")?.value)
}

fn text(node: &Node, id: &str, script: &str) -> Result<String> {
    Ok(String::from_utf8(node.exec(id, script)?)?.trim().to_owned())
}

/// A number that a file of the container's own cgroup says.
fn own(node: &Node, id: &str, pipeline: &str) -> Result<u64> {
    let told = text(node, id, &format!("cd /sys/fs/cgroup && {pipeline}"))?;
    told.parse()
        .with_context(|| format!("{pipeline}: {told:?}"))
}

fn limited(mut config: ContainerConfig, mib: u64) -> Result<ContainerConfig> {
    config.linux = Some(LinuxContainerConfig {
        resources: Some(LinuxContainerResources {
            memory_limit_in_bytes: i64::try_from(mib * MIB)?,
            ..LinuxContainerResources::default()
        }),
        ..LinuxContainerConfig::default()
    });
    Ok(config)
}

fn cpu_used(stats: &ContainerStats) -> Result<u64> {
    number(
        stats
            .cpu
            .as_ref()
            .context("no cpu")?
            .usage_core_nano_seconds,
    )
}

#[test]
fn a_containers_statistics_are_what_its_own_cgroup_says() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("books")?;
        let config = limited(shell("main", "exec sleep 10000"), 64)?;
        let id = node.start(&pod, config)?;
        node.exec(&id, "head -c 5242880 /dev/zero > /written && mkdir /folder")?;

        let cpu = || own(node, &id, "sed -n 's/usage_usec //p' cpu.stat");
        let memory = || own(node, &id, "cat memory.current");
        let before = (cpu()?, memory()?);
        let stats = node.cri().container_stats(&id)?;
        let after = (cpu()?, memory()?);
        let used = cpu_used(&stats)? / 1_000;
        ensure!(
            (before.0..=after.0).contains(&used),
            "{used} is not between {before:?} and {after:?}"
        );
        let told = stats.memory.as_ref().context("no memory")?;
        let usage = number(told.usage_bytes)?;
        // An exec of the test's own is in the container's books, too.
        let most = before.1.max(after.1) + 4 * MIB;
        ensure!(
            usage > 0 && usage <= most,
            "{usage} of {before:?}, {after:?}"
        );
        let working_set = number(told.working_set_bytes)?;
        ensure!(working_set <= usage, "{working_set} of {usage}");
        assert_eq!(number(told.available_bytes)?, 64 * MIB - working_set);
        ensure!(number(told.page_faults)? > 0);
        let cpu_psi = stats.cpu.as_ref().and_then(|cpu| cpu.psi.as_ref());
        ensure!(cpu_psi.is_some_and(|psi| psi.some.is_some()), "{stats:?}");
        ensure!(told.psi.is_some() && stats.io.is_some_and(|io| io.psi.is_some()));

        let layer = stats.writable_layer.context("no writable layer")?;
        let bytes = number(layer.used_bytes)?;
        ensure!((5 * MIB..6 * MIB).contains(&bytes), "{bytes} written");
        let inodes = number(layer.inodes_used)?;
        ensure!((3..30).contains(&inodes), "{inodes} inodes");
        node.exec(&id, "head -c 3145728 /dev/zero > /folder/more")?;
        std::thread::sleep(COUNT_AGE);
        let layer = node.cri().container_stats(&id)?.writable_layer;
        let grown = number(layer.context("no writable layer")?.used_bytes)?;
        ensure!((8 * MIB..9 * MIB).contains(&grown), "{grown} written");
        Ok(())
    })
}

#[test]
fn work_and_memory_show_in_the_statistics_of_container_and_pod() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("load")?;
        let idle = node.start(&pod, shell("idle", "exec sleep 10000"))?;
        let busy = node.start(&pod, shell("busy", "while :; do :; done"))?;
        let first = node.cri().container_stats(&busy)?;
        std::thread::sleep(Duration::from_secs(3));
        let second = node.cri().container_stats(&busy)?;
        let worked = cpu_used(&second)? - cpu_used(&first)?;
        ensure!(worked > 500_000_000, "{worked} ns in 3 s of a busy loop");
        let rate = number(second.cpu.as_ref().and_then(|it| it.usage_nano_cores))?;
        ensure!((100_000_000..3_000_000_000).contains(&rate), "{rate}");

        // A file in memory is the container's, and no cache that could be dropped.
        let held = |stats: ContainerStats| number(stats.memory.and_then(|it| it.working_set_bytes));
        let before = held(node.cri().container_stats(&idle)?)?;
        node.exec(&idle, "head -c 20971520 /dev/zero > /dev/shm/held")?;
        let after = held(node.cri().container_stats(&idle)?)?;
        ensure!(after > before + 19 * MIB, "{before} then {after}");

        let told = node.cri().pod_stats(&pod)?;
        let linux = told.linux.context("no statistics of the pod")?;
        assert_eq!(told.attributes.context("no attributes")?.id, pod);
        let whole = number(linux.cpu.context("no cpu")?.usage_core_nano_seconds)?;
        ensure!(
            whole >= cpu_used(&second)?,
            "{whole} is less than a part of it"
        );
        let whole = number(linux.memory.context("no memory")?.working_set_bytes)?;
        ensure!(whole >= after - MIB, "{whole} is less than {after}");
        let processes = number(linux.process.context("no processes")?.process_count)?;
        assert_eq!(processes, 2);
        let mut ids: Vec<_> = linux.containers.into_iter().collect();
        ids.sort_by_key(|stats| cpu_used(stats).unwrap_or(0));
        let ids: Vec<_> = ids
            .into_iter()
            .filter_map(|stats| Some(stats.attributes?.id))
            .collect();
        assert_eq!(ids, [idle.clone(), busy.clone()]);
        assert_eq!(linux.network, None, "it has loopback only");

        let crictl = node.crictl()?;
        let table = crictl.run(&["stats", "--seconds", "1"])?;
        ensure!(
            table.contains(&idle[..13]) && table.contains("busy"),
            "{table}"
        );
        let table = crictl.run(&["statsp", "--seconds", "1"])?;
        ensure!(table.contains(&pod[..13]), "{table}");
        Ok(())
    })
}

#[test]
fn filters_choose_by_id_pod_and_labels_and_leave_out_what_does_not_run() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("chosen")?;
        let mut config = shell("blue", "exec sleep 10000");
        config.labels = [("colour".to_owned(), "blue".to_owned())].into();
        let blue = node.start(&pod, config)?;
        let plain = node.start(&pod, shell("plain", "exec sleep 10000"))?;
        let (ended, _) = node.run_script(&pod, "ended", "true")?;
        let waiting = node.create(&pod, shell("waiting", "true"))?;
        let listed = |filter: Option<ContainerStatsFilter>| -> Result<Vec<String>> {
            let stats = node.cri().all_container_stats(filter)?;
            let attributes = stats.into_iter().filter_map(|it| it.attributes);
            Ok(attributes.map(|it| it.id).collect())
        };
        let mut both = vec![blue.clone(), plain.clone()];
        both.sort();
        assert_eq!(listed(None)?, both);
        let filter = ContainerStatsFilter::default;
        let of_pod = ContainerStatsFilter {
            pod_sandbox_id: pod.clone(),
            ..filter()
        };
        assert_eq!(listed(Some(of_pod))?, both);
        let of_id = ContainerStatsFilter {
            id: plain.clone(),
            ..filter()
        };
        assert_eq!(listed(Some(of_id))?, [plain]);
        let labelled = |value: &str| ContainerStatsFilter {
            label_selector: [("colour".to_owned(), value.to_owned())].into(),
            ..filter()
        };
        assert_eq!(listed(Some(labelled("blue")))?, [blue]);
        assert_eq!(listed(Some(labelled("red")))?, [""; 0]);
        for id in [&ended.id, &waiting] {
            assert_refused(
                node.cri().container_stats(id),
                Code::FailedPrecondition,
                "measured",
            );
        }
        let of_nothing = PodSandboxStatsFilter {
            id: "ffffffff".to_owned(),
            ..PodSandboxStatsFilter::default()
        };
        assert_eq!(node.cri().all_pod_stats(Some(of_nothing))?, []);
        Ok(())
    })
}

/// Takes all that one connection has to say.
fn drain(listener: &TcpListener) -> std::io::Result<u64> {
    let mut stream: TcpStream = listener.accept()?.0;
    std::io::copy(&mut stream, &mut std::io::sink())
}

#[test]
fn what_a_pod_sends_is_counted_as_its_own_kernel_counts_it() -> Result<()> {
    isolated(|| {
        let cni = Cni::new()?;
        cni.plugins(&[cni.bridge(&["10.88.0.0/16"])])?;
        node::run(Options::kvm().network(&cni), |node| {
            let pod = node.busybox_pod("sender")?;
            let id = node.start(&pod, shell("main", "exec sleep 10000"))?;
            let network = || -> Result<_> {
                let linux = node.cri().pod_stats(&pod)?.linux;
                let network = linux.and_then(|it| it.network).context("no network")?;
                network.default_interface.context("no interface")
            };
            let before = network()?;
            assert_eq!(before.name, "eth0");
            let listener = TcpListener::bind(SocketAddr::new(IpAddr::from([0; 4]), 0))?;
            let port = listener.local_addr()?.port();
            let taken = std::thread::scope(|scope| {
                let taker = scope.spawn(|| drain(&listener));
                node.exec(
                    &id,
                    &format!("head -c 4194304 /dev/zero | nc 10.88.0.1 {port}"),
                )?;
                let taken = taker.join().expect("the taker does not panic");
                anyhow::Ok(taken?)
            })?;
            assert_eq!(taken, 4 * MIB);
            let counter = |name: &str| -> Result<u64> {
                let file = format!("cat /sys/class/net/eth0/statistics/{name}");
                Ok(text(node, &id, &file)?.parse()?)
            };
            let low = (counter("tx_bytes")?, counter("rx_bytes")?);
            let after = network()?;
            let high = (counter("tx_bytes")?, counter("rx_bytes")?);
            let (sent, received) = (number(after.tx_bytes)?, number(after.rx_bytes)?);
            ensure!((low.0..=high.0).contains(&sent), "{sent}: {low:?} {high:?}");
            ensure!((low.1..=high.1).contains(&received), "{received}");
            let grown = sent - number(before.tx_bytes)?;
            ensure!(grown >= 4 * MIB, "{grown} for 4 MiB");
            Ok(())
        })
    })
}

#[test]
fn a_pod_that_dies_while_statistics_are_listed_is_left_out() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let keep = node.busybox_pod("keep")?;
        node.start(&keep, shell("main", "exec sleep 10000"))?;
        let dies = node.busybox_pod("dies")?;
        let container = node.start(&dies, shell("main", "while :; do :; done"))?;
        assert_eq!(node.cri().all_pod_stats(None)?.len(), 2);
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| node.vmm(&dies).map(|vmm| vmm.kill()));
            wait_for("the dead pod to be left out", LIMIT, || {
                // Never an error, whenever it dies.
                let pods = node.cri().all_pod_stats(None);
                let containers = node.cri().all_container_stats(None);
                Some(match (pods, containers) {
                    (Ok(pods), Ok(containers)) if (pods.len(), containers.len()) == (1, 1) => {
                        Ok(())
                    }
                    (Ok(_), Ok(_)) => return None,
                    (Err(status), _) | (_, Err(status)) => Err(status),
                })
            })??;
            killer.join().expect("the killer does not panic")
        })?;
        let of_pod = node.cri().pod_stats(&dies);
        assert_refused(of_pod, Code::FailedPrecondition, "not ready");
        node.wait_exited(&container)?;
        assert_refused(
            node.cri().container_stats(&container),
            Code::FailedPrecondition,
            "measured",
        );
        Ok(())
    })
}

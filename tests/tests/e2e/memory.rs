//! A pod's memory grows and shrinks while it runs, seen from inside and from the host.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use isopod_proto::cri::{
    LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxState,
    UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest,
};
use isopod_tests::node::{self, Node, Options, assert_refused, image, pod_config, shell};
use isopod_tests::wait::wait_for;
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

/// What a guest is started with, and has beside a limit, in MiB.
const STARTED: i64 = 256;
const OVERHEAD: i64 = 64;

/// How long the guest's kernel may take to use what it has plugged, or to give back what is free.
const LIMIT: Duration = Duration::from_secs(180);

fn limit(mib: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: mib * MIB,
        ..LinuxContainerResources::default()
    }
}

fn resize(node: &Node, pod: &str, mib: i64) -> Result<(), Status> {
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.to_owned(),
        resources: Some(limit(mib)),
        ..UpdatePodSandboxResourcesRequest::default()
    };
    node.cri()
        .runtime(async |mut cri| cri.update_pod_sandbox_resources(request).await)
        .map(|_| ())
}

fn update(node: &Node, id: &str, mib: i64) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(limit(mib)),
        ..UpdateContainerResourcesRequest::default()
    };
    node.cri()
        .runtime(async |mut cri| cri.update_container_resources(request).await)
        .map(|_| ())
}

/// What the guest's kernel has, in MiB.
fn total(node: &Node, id: &str) -> Result<i64> {
    let text = node.exec(id, "grep MemTotal /proc/meminfo | tr -dc 0-9")?;
    Ok(String::from_utf8(text)?.trim().parse::<i64>()? >> 10)
}

/// Waits until it has so much more than it was started with.
fn wait_for_total(node: &Node, id: &str, started: i64, added: i64) -> Result<()> {
    let mut last = 0;
    wait_for("the guest's memory", LIMIT, || {
        last = total(node, id).ok()?;
        (last - started == added).then_some(())
    })
    .with_context(|| format!("{last} MiB, not {started} and {added}"))
}

/// Memory of the host that a pod's VMM has, in MiB.
fn resident(node: &Node, pod: &str) -> Result<i64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.vmm(pod)?.pid))?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("no RssAnon")?.parse::<i64>()? >> 10)
}

/// What the status says that the guest was asked to have, and has, beside what it was started with.
fn told(node: &Node, pod: &str) -> Result<(i64, i64)> {
    let status = node.cri().pod_status(pod)?;
    let info: serde_json::Value =
        serde_json::from_str(status.info.get("info").context("no info")?)?;
    let number = |name: &str| info["machine"][name].as_i64().context("no number");
    Ok((number("askedMemoryMiB")?, number("pluggedMemoryMiB")?))
}

/// Waits until the guest has given back all that it was asked to; it tries again after a while.
fn wait_for_less(node: &Node, pod: &str, added: i64) -> Result<()> {
    let mut last = (0, 0);
    wait_for("the guest to shrink", LIMIT, || {
        last = told(node, pod).ok()?;
        (last == (added, added)).then_some(())
    })
    .with_context(|| format!("{last:?}, not {added}"))
}

#[test]
fn a_pods_memory_grows_shrinks_and_grows_again() -> Result<()> {
    node::run(Options::kvm().vm("max_memory_mib", 800), |node| {
        let pod = node.busybox_pod("memory")?;
        let id = node.start(&pod, shell("main", "exec sleep 10000"))?;
        let started = total(node, &id)?;
        ensure!((150..STARTED).contains(&started), "{started} MiB of 256");

        resize(node, &pod, 512)?;
        let added = 512 + OVERHEAD - STARTED;
        assert_eq!(told(node, &pod)?, (added, added));
        wait_for_total(node, &id, started, added)?;
        let before = resident(node, &pod)?;
        // More than it was started with, in one piece.
        node.exec(&id, "dd if=/dev/zero of=/dev/null bs=400M count=1")?;
        let used = resident(node, &pod)?;
        ensure!(used > before + 250, "{used} MiB, {before} MiB before");
        // Devices read and write there.
        let copy = "dd if=/dev/urandom of=/a bs=1M count=64 && cp /a /b && sync && cmp /a /b";
        node.exec(&id, copy)?;

        // Below what it was started with, which it keeps.
        resize(node, &pod, 64)?;
        wait_for_less(node, &pod, 0)?;
        wait_for_total(node, &id, started, 0)?;
        let kept = resident(node, &pod)?;
        ensure!(kept <= STARTED + 40, "{kept} MiB are still there");

        let beyond = resize(node, &pod, 900);
        assert_refused(beyond, Code::InvalidArgument, "vm.max_memory_mib");
        assert_eq!((told(node, &pod)?, total(node, &id)?), ((0, 0), started));

        // A new daemon knows what the old one asked for.
        resize(node, &pod, 300)?;
        node.kill_daemon();
        node.start_daemon()?;
        assert_eq!(told(node, &pod)?, (108, 108));
        resize(node, &pod, 600)?;
        wait_for_total(node, &id, started, 600 + OVERHEAD - STARTED)?;
        resize(node, &pod, 200)?;
        wait_for_total(node, &id, started, 200 + OVERHEAD - STARTED)
    })
}

#[test]
fn a_guest_grows_for_the_limits_of_its_containers_and_shrinks_with_them() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("containers")?;
        let first = node.start(&pod, shell("first", "exec sleep 10000"))?;
        let second = node.start(&pod, shell("second", "exec sleep 10000"))?;
        let started = total(node, &first)?;
        update(node, &first, 100)?;
        assert_eq!(told(node, &pod)?, (0, 0));
        update(node, &second, 200)?;
        let added = 100 + 200 + OVERHEAD - STARTED;
        assert_eq!(told(node, &pod)?, (added, added));
        wait_for_total(node, &first, started, added)?;
        let refused = update(node, &second, 1 << 20);
        assert_refused(
            refused,
            Code::InvalidArgument,
            "linux.memory_limit_in_bytes",
        );
        assert_eq!(told(node, &pod)?, (added, added));
        let max = node.exec(&second, "cat /sys/fs/cgroup/memory.max")?;
        assert_eq!(String::from_utf8(max)?.trim(), (200 * MIB).to_string());
        // The pod's own limit needs more than they do, and then no more.
        resize(node, &pod, 400)?;
        let most = 400 + OVERHEAD - STARTED;
        assert_eq!(told(node, &pod)?, (most, most));
        resize(node, &pod, 50)?;
        wait_for_less(node, &pod, added)?;
        update(node, &second, 50)?;
        wait_for_less(node, &pod, 0)?;
        wait_for_total(node, &first, started, 0)
    })
}

#[test]
fn a_limit_that_the_host_would_end_the_guest_for_is_refused_and_one_that_fits_is_not() -> Result<()>
{
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("busybox"))?;
        let mut config = pod_config(node, "held");
        config.linux = Some(LinuxPodSandboxConfig {
            cgroup_parent: "held.slice".to_owned(),
            resources: Some(limit(300)),
            overhead: Some(limit(100)),
            ..LinuxPodSandboxConfig::default()
        });
        let pod = node.cri().run_pod(config.clone())?;
        let id = node
            .cri()
            .create(&pod, shell("main", "exec sleep 10000"), config)?;
        node.cri().start(&id)?;
        let slice = Path::new("/sys/fs/cgroup/held.slice/memory.max");
        fs::write(slice, (400 * MIB).to_string())?;
        // A kubelet's words for no limit of the pod: they change nothing.
        resize(node, &pod, -1)?;
        resize(node, &pod, 500)?;
        assert_eq!(told(node, &pod)?, (200, 200));
        fs::write(slice, (600 * MIB).to_string())?;
        node.exec(&id, "dd if=/dev/zero of=/dev/null bs=400M count=1")?;
        let refused = resize(node, &pod, 50);
        assert_refused(refused, Code::FailedPrecondition, "the host would end it");
        assert_eq!(told(node, &pod)?, (200, 200), "as it was");
        resize(node, &pod, 400)?;
        wait_for_less(node, &pod, 100)?;
        fs::write(slice, (500 * MIB).to_string())?;
        assert_eq!(node.exec(&id, "echo alive")?, b"alive\n");
        Ok(())
    })
}

/// Has the guest's kernel give no driver to a virtio device that appears.
const NO_DRIVER: &str = "echo 0 > /sys/bus/virtio/drivers_autoprobe";

#[test]
fn a_guest_that_ignores_new_memory_grows_once_it_does_not() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let (pod, id) = node.start_privileged("ignoring", "exec sleep 10000")?;
        let started = total(node, &id)?;
        node.exec(&id, NO_DRIVER)?;
        let record = node
            .root_dir()
            .join("sandboxes")
            .join(&pod)
            .join("sandbox.json");
        let before = fs::read(&record)?;
        let wanting = "of 320 MiB beside the 256 MiB that it was started with, it has taken 0 MiB";
        for refused in [resize(node, &pod, 512), update(node, &id, 512)] {
            assert_refused(refused, Code::DeadlineExceeded, wanting);
            assert_eq!((told(node, &pod)?, total(node, &id)?), ((0, 0), started));
        }
        assert_eq!(fs::read(&record)?, before, "the pod's record");
        let max = node.exec(&id, &format!("cat /sys/fs/cgroup/isopod/{id}/memory.max"))?;
        assert_eq!(max, b"max\n", "the container's limit");
        let bind = "cd /sys/bus/virtio/devices; \
            for device in *; do \
                [ -e $device/driver ] || echo $device > ../drivers/virtio_mem/bind; \
            done";
        node.exec(&id, bind)?;
        resize(node, &pod, 512)?;
        let added = 512 + OVERHEAD - STARTED;
        assert_eq!(told(node, &pod)?, (added, added));
        wait_for_total(node, &id, started, added)
    })
}

#[test]
fn a_pod_whose_machine_ends_while_it_grows_is_told_so() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let (pod, id) = node.start_privileged("ending", "exec sleep 10000")?;
        node.exec(&id, NO_DRIVER)?;
        let refused = thread::scope(|scope| {
            let resizing = scope.spawn(|| resize(node, &pod, 512));
            // The guest is asked, and never takes it.
            wait_for("the guest to be asked", LIMIT, || {
                (told(node, &pod).ok()? == (320, 0)).then_some(())
            })?;
            node.vmm(&pod)?.kill();
            resizing
                .join()
                .map_err(|_panic| anyhow!("resizing panicked"))
        })?;
        let error = refused.expect_err("there is no guest");
        ensure!(error.code() != Code::DeadlineExceeded, "{error}");
        let state = node
            .cri()
            .pod_status(&pod)?
            .status
            .context("a status")?
            .state();
        assert_eq!(state, PodSandboxState::SandboxNotready, "{error}");
        Ok(())
    })
}

//! Limits and devices, seen from inside, and how they change while a pod runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{
    ContainerConfig, Device, LinuxContainerConfig, LinuxContainerResources, LinuxPodSandboxConfig,
    UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest,
};
use isopod_tests::node::{self, Node, Options, assert_refused, image, pod_config, shell};
use isopod_tests::wait::wait_for;
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

/// How long the host may take to account for what a guest does.
const LIMIT: Duration = Duration::from_secs(60);

fn limited(mut config: ContainerConfig, resources: LinuxContainerResources) -> ContainerConfig {
    config.linux = Some(LinuxContainerConfig {
        resources: Some(resources),
        ..LinuxContainerConfig::default()
    });
    config
}

fn text(node: &Node, id: &str, script: &str) -> Result<String> {
    Ok(String::from_utf8(node.exec(id, script)?)?.trim().to_owned())
}

fn update(node: &Node, id: &str, linux: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    node.cri()
        .runtime(async |mut cri| cri.update_container_resources(request).await)
        .map(|_| ())
}

fn resize(node: &Node, pod: &str, resources: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.to_owned(),
        resources: Some(resources),
        ..UpdatePodSandboxResourcesRequest::default()
    };
    node.cri()
        .runtime(async |mut cri| cri.update_pod_sandbox_resources(request).await)
        .map(|_| ())
}

#[test]
fn a_containers_limits_change_up_and_down_while_it_runs() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("limits")?;
        let resources = LinuxContainerResources {
            memory_limit_in_bytes: 64 * MIB,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            cpu_shares: 512,
            oom_score_adj: 300,
            unified: [("pids.max".to_owned(), "50".to_owned())].into(),
            ..LinuxContainerResources::default()
        };
        let id = node.start(&pod, limited(shell("main", "exec sleep 10000"), resources))?;
        let file = |name: &str| text(node, &id, &format!("cat /sys/fs/cgroup/{name}"));
        assert_eq!(file("memory.max")?, (64 * MIB).to_string());
        assert_eq!(file("cpu.max")?, "50000 100000");
        assert_eq!(file("pids.max")?, "50");
        assert_eq!(
            text(node, &id, "cat /proc/$(pidof sleep)/oom_score_adj")?,
            "300"
        );
        for (mib, quota) in [(96, 150_000), (48, 20_000)] {
            let change = LinuxContainerResources {
                memory_limit_in_bytes: mib * MIB,
                cpu_quota: quota,
                cpu_period: 100_000,
                oom_score_adj: 400,
                ..LinuxContainerResources::default()
            };
            update(node, &id, change)?;
            assert_eq!(file("memory.max")?, (mib * MIB).to_string());
            assert_eq!(file("cpu.max")?, format!("{quota} 100000"));
            assert_eq!(file("pids.max")?, "50", "what is not named stays");
            assert_eq!(
                text(node, &id, "cat /proc/$(pidof sleep)/oom_score_adj")?,
                "400"
            );
            let status = node.cri().container_status(&id)?;
            let told = status
                .resources
                .and_then(|it| it.linux)
                .context("no resources")?;
            assert_eq!(told.memory_limit_in_bytes, mib * MIB);
            assert_eq!((told.cpu_quota, told.cpu_shares), (quota, 512));
        }
        let refused = |change: LinuxContainerResources, field: &str| {
            assert_refused(update(node, &id, change), Code::InvalidArgument, field);
        };
        refused(
            LinuxContainerResources {
                memory_limit_in_bytes: -1,
                ..LinuxContainerResources::default()
            },
            "memory_limit_in_bytes",
        );
        refused(
            LinuxContainerResources {
                // Less than the memory limit that it has.
                memory_swap_limit_in_bytes: MIB,
                ..LinuxContainerResources::default()
            },
            "memory_swap_limit_in_bytes",
        );
        refused(
            LinuxContainerResources {
                cpu_period: 5,
                ..LinuxContainerResources::default()
            },
            "cpu_period",
        );
        node.cri().stop(&id, 0)?;
        let late = update(node, &id, LinuxContainerResources::default());
        assert_refused(late, Code::FailedPrecondition, "exited");
        Ok(())
    })
}

#[test]
fn a_pods_processors_come_and_go() -> Result<()> {
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("busybox"))?;
        let cpus = |count: i64| LinuxContainerResources {
            cpu_quota: count * 100_000,
            cpu_period: 100_000,
            ..LinuxContainerResources::default()
        };
        let mut config = pod_config(node, "cpus");
        config.linux = Some(LinuxPodSandboxConfig {
            resources: Some(cpus(3)),
            ..LinuxPodSandboxConfig::default()
        });
        let pod = node.cri().run_pod(config)?;
        let id = node.start(&pod, shell("main", "exec sleep 10000"))?;
        let count = || text(node, &id, "grep -c ^processor /proc/cpuinfo");
        assert_eq!(count()?, "3");
        for wanted in [1, 2, 3] {
            resize(node, &pod, cpus(wanted))?;
            assert_eq!(count()?, wanted.to_string());
        }
        assert_refused(
            resize(node, &pod, cpus(60)),
            Code::InvalidArgument,
            "cpu_quota",
        );
        let memory = LinuxContainerResources {
            memory_limit_in_bytes: 1 << 40,
            ..LinuxContainerResources::default()
        };
        assert_refused(
            resize(node, &pod, memory),
            Code::InvalidArgument,
            "memory_limit_in_bytes",
        );
        Ok(())
    })
}

#[test]
fn processors_of_the_host_that_containers_ask_for_confine_their_pod() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("cpuset")?;
        let on = |cpus: &str| LinuxContainerResources {
            cpuset_cpus: cpus.to_owned(),
            ..LinuxContainerResources::default()
        };
        let confined = |file: &str| -> Result<String> {
            let path = format!("/sys/fs/cgroup/isopod-{pod}/cpuset.{file}");
            Ok(fs::read_to_string(path)?.trim().to_owned())
        };
        let sleeper = |name: &str| shell(name, "exec sleep 10000");
        let id = node.start(&pod, limited(sleeper("first"), on("0")))?;
        assert_eq!(confined("cpus")?, "0");
        // A guest's processors are its own.
        assert_eq!(text(node, &id, "cat /sys/fs/cgroup/cpuset.cpus")?, "");
        let other = node.start(&pod, sleeper("everywhere"))?;
        let all = fs::read_to_string("/sys/fs/cgroup/cpuset.cpus.effective")?;
        assert_eq!(confined("cpus")?, all.trim());
        node.cri().remove(&other)?;
        assert_eq!(confined("cpus")?, "0");
        let nodes = LinuxContainerResources {
            cpuset_mems: "0".to_owned(),
            ..LinuxContainerResources::default()
        };
        update(node, &id, nodes)?;
        assert_eq!(
            (confined("cpus")?, confined("mems")?),
            ("0".into(), "0".into())
        );
        let refused = update(node, &id, on("9000"));
        assert_refused(refused, Code::InvalidArgument, "cpuset_cpus");
        let missing = limited(sleeper("missing"), on("9000"));
        let refused = node.cri().create(&pod, missing, pod_config(node, "cpuset"));
        assert_refused(refused, Code::InvalidArgument, "cpuset_cpus");
        assert_eq!(confined("cpus")?, "0");
        Ok(())
    })
}

#[test]
fn a_pods_cgroup_on_the_host_bounds_its_guest() -> Result<()> {
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("busybox"))?;
        let slice = Path::new("/sys/fs/cgroup/it.slice/it-pod.slice");
        let mut config = pod_config(node, "cgroup");
        config.linux = Some(LinuxPodSandboxConfig {
            cgroup_parent: "it-pod.slice".to_owned(),
            ..LinuxPodSandboxConfig::default()
        });
        let pod = node.cri().run_pod(config)?;
        let vmm = node.vmm(&pod)?.pid;
        assert_eq!(
            fs::read_to_string(format!("/proc/{vmm}/cgroup"))?.trim(),
            format!("0::/it.slice/it-pod.slice/isopod-{pod}")
        );
        let used = || -> Result<u64> {
            Ok(fs::read_to_string(slice.join("memory.current"))?
                .trim()
                .parse()?)
        };
        let before = used()?;
        assert!(
            before > 16 << 20,
            "a guest's kernel alone needs more: {before}"
        );
        let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>/dev/null; exec sleep 10000";
        let id = node.start(&pod, shell("main", script))?;
        wait_for("the guest's memory to count", LIMIT, || {
            let now = used().ok()?;
            (now > before + (40 << 20)).then_some(())
        })?;
        // What the pod may not have, its guest cannot take.
        fs::write(slice.join("memory.max"), (32 << 20).to_string())?;
        let status = node.wait_exited(&id)?;
        assert_eq!(status.exit_code, 137);
        node.cri().remove_pod(&pod)?;
        assert!(!Path::new("/sys/fs/cgroup/it.slice").exists());
        Ok(())
    })
}

/// A loop device over a file of so many MiB, detached when this is dropped.
struct Loop(String);

impl Loop {
    fn over(path: &Path, mib: u64) -> Result<Self> {
        fs::File::create(path)?.set_len(mib << 20)?;
        // Where it is built in there is no module; losetup says if there is neither.
        let _ = Command::new("modprobe").arg("loop").status();
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(path)
            .output()?;
        ensure!(
            output.status.success(),
            "losetup: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self(String::from_utf8(output.stdout)?.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The test has failed already if this does.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn device(host: &str, container: &str, permissions: &str) -> Device {
    Device {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        permissions: permissions.to_owned(),
    }
}

#[test]
fn a_block_device_of_the_host_is_a_disk_of_the_container() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let backing = node.folder().join("disk.img");
        let disk = Loop::over(&backing, 8)?;
        let pod = node.busybox_pod("block")?;
        let mut config = shell("main", "exec sleep 10000");
        config.devices = vec![
            device(&disk.0, "/dev/data", "rw"),
            device("/dev/fuse", "/dev/fuse", "rwm"),
        ];
        let id = node.start(&pod, config)?;
        assert_eq!(
            text(node, &id, "blockdev --getsize64 /dev/data")?,
            (8 * MIB).to_string()
        );
        node.exec(
            &id,
            "echo from the container | dd of=/dev/data bs=512 seek=3 conv=fsync",
        )?;
        node.exec(&id, "exec 3<>/dev/fuse")?;
        // Another device of the guest, which it was not given.
        let scratch = node.exec_any(&id, "mknod /tmp/scratch b 254 0 && head -c 1 /tmp/scratch")?;
        assert_ne!(scratch.exit_code, 0);
        node.cri().remove(&id)?;
        let content = fs::read(&disk.0)?;
        assert!(content[3 * 512..].starts_with(b"from the container\n"));

        let mut config = shell("read-only", "exec sleep 10000");
        config.devices = vec![device(&disk.0, "/dev/data", "r")];
        let id = node.start(&pod, config)?;
        assert_eq!(
            text(
                node,
                &id,
                "dd if=/dev/data bs=512 skip=3 count=1 2>/dev/null | head -c 4"
            )?,
            "from"
        );
        let written = node.exec_any(&id, "echo x > /dev/data")?;
        assert_ne!(written.exit_code, 0);
        node.cri().remove(&id)?;
        for (host, field) in [("/dev/no-such", "host_path"), ("/dev/kvm", "host_path")] {
            let mut config = shell("refused", "true");
            config.devices = vec![device(host, "/dev/x", "rw")];
            let answer = node.cri().create(&pod, config, pod_config(node, "block"));
            assert_refused(answer, Code::InvalidArgument, field);
        }
        Ok(())
    })
}

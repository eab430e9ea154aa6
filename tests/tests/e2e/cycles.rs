//! Many containers in one sandbox, one after the other: nothing of them is left, neither on the host
//! nor in the guest.

use std::collections::BTreeMap;
use std::env;
use std::fs;

use anyhow::{Context as _, Result};
use isopod_proto::cri::{ContainerConfig, Mount};
use isopod_tests::node::{self, Node, Options, shell};
use isopod_tests::process::{Process, resident};

/// How many containers, unless this variable says another number.
const CYCLES: u32 = 100;
const CYCLES_VARIABLE: &str = "ISOPOD_TEST_CYCLES";

/// Those before the first look, which fill caches.
const WARM_UP: u32 = 10;

/// By how much a figure may grow, by its name: what is not named may not. Memory is in KiB, and
/// caches differ from one look to the next.
const SLACK: &[(&str, i64)] = &[
    ("vmm heap", 1024),
    ("daemon memory", 8192),
    ("guest file handles", 64),
    ("guest slab", 4096),
    ("guest kernel stacks", 256),
    ("scratch disk", 512),
];

fn number(text: &str) -> Result<i64> {
    text.trim().parse().with_context(|| format!("{text:?}"))
}

/// Everything that could be left behind, counted.
fn look(node: &Node, pod: &str, observer: &str) -> Result<BTreeMap<&'static str, i64>> {
    let vmm = node.vmm(pod)?.pid;
    let daemon = node.daemon_pid()?;
    let count = |path: String| -> Result<i64> { Ok(i64::try_from(fs::read_dir(path)?.count())?) };
    let sandbox = node.root_dir().join("sandboxes").join(pod);
    let script = "echo 3 > /proc/sys/vm/drop_caches; ls -d /sys/block/vd* | wc -l; \
        find /sys/fs/cgroup -type d | wc -l; cut -f 1 /proc/sys/fs/file-nr; \
        sed -n 's/^SUnreclaim: *\\([0-9]*\\) kB/\\1/p; s/^KernelStack: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; \
        df -Pk / | tail -n 1 | awk '{ print $3 }'; ls /sys/bus/pci/devices | wc -l";
    let told = String::from_utf8(node.exec(observer, script)?)?;
    let told = told.lines().map(number).collect::<Result<Vec<_>>>()?;
    let names = [
        "guest disks",
        "guest cgroups",
        "guest file handles",
        "guest slab",
        "guest kernel stacks",
        "scratch disk",
        "guest devices",
    ];
    anyhow::ensure!(told.len() == names.len(), "{told:?}");
    let mut seen: BTreeMap<_, _> = names.into_iter().zip(told).collect();
    seen.extend([
        ("vmm descriptors", count(format!("/proc/{vmm}/fd"))?),
        ("vmm threads", count(format!("/proc/{vmm}/task"))?),
        (
            "vmm mappings",
            i64::try_from(
                fs::read_to_string(format!("/proc/{vmm}/maps"))?
                    .lines()
                    .count(),
            )?,
        ),
        ("vmm heap", resident(vmm, true)?),
        ("daemon memory", resident(daemon, false)?),
        (
            "daemon descriptors",
            i64::try_from(Process::descriptors(daemon).len())?,
        ),
        (
            "records",
            count(sandbox.join("containers").display().to_string())?,
        ),
        (
            "host mounts",
            i64::try_from(fs::read_to_string("/proc/self/mountinfo")?.lines().count())?,
        ),
    ]);
    Ok(seen)
}

fn cycle(node: &Node, pod: &str, config: ContainerConfig, number: u32) -> Result<()> {
    let id = node.start(pod, config)?;
    if number.is_multiple_of(10) {
        // What is killed leaves as little as what ends.
        node.exec(&id, "true")?;
    } else {
        node.wait_exited(&id)?;
    }
    Ok(node.cri().remove(&id)?)
}

#[test]
fn hundreds_of_containers_in_one_sandbox_leave_nothing() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let cycles = match env::var(CYCLES_VARIABLE) {
            Ok(text) => text.parse().context(CYCLES_VARIABLE)?,
            Err(_) => CYCLES,
        };
        let (pod, observer) = node.start_privileged("cycles", "exec sleep 1000000")?;
        let folder = node.folder().join("volume");
        fs::create_dir(&folder)?;
        let config = |number: u32| {
            let script = "echo x > /v/file; echo x > /file; echo done";
            let hang = if number.is_multiple_of(10) {
                "; exec sleep 10000"
            } else {
                ""
            };
            let mut config = shell("again", &format!("{script}{hang}"));
            config.mounts = vec![Mount {
                host_path: folder.display().to_string(),
                container_path: "/v".into(),
                ..Mount::default()
            }];
            config
        };
        let mut before = BTreeMap::new();
        for number in 0..WARM_UP + cycles {
            if number == WARM_UP {
                before = look(node, &pod, &observer)?;
            }
            cycle(node, &pod, config(number), number)
                .with_context(|| format!("container {number}"))?;
        }
        let after = look(node, &pod, &observer)?;
        println!("after {cycles} containers, beyond the first {WARM_UP}:");
        let mut grown = Vec::new();
        for (name, before) in &before {
            let after = after[name];
            println!("{name}: {before} before, {after} after");
            let slack = SLACK
                .iter()
                .find(|(of, _)| of == name)
                .map_or(0, |(_, slack)| *slack);
            if after > before + slack {
                grown.push(format!("{name}: {before} before, {after} after"));
            }
        }
        assert_eq!(grown, Vec::<String>::new(), "after {cycles} containers");
        Ok(())
    })
}

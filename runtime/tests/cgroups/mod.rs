//! Where VMMs are among the host's cgroups. Needs root and cgroup version 2, with or without
//! controllers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use isopod_proto::cri::{LinuxPodSandboxConfig, PodSandboxConfig};
use isopod_tests::node::{Node, assert_refused, pod_config};
use isopod_tests::skip;
use tonic::Code;

use super::fake::{START_TIMEOUT_MS, on_fake};
use super::{wait_not_ready, wait_until_traceless};

/// Where the unified hierarchy is, or `None` after the test was skipped.
fn root() -> Option<PathBuf> {
    let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = root
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists());
    if root.is_none() {
        skip("needs cgroup version 2");
    }
    root
}

fn config(node: &Node, name: &str, parent: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: parent.to_owned(),
            ..LinuxPodSandboxConfig::default()
        }),
        ..pod_config(node, name)
    }
}

/// The cgroup of a sandbox's VMM.
fn cgroup(node: &Node, pod: &str) -> Result<String> {
    let pid = node.vmm(pod)?.pid;
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let unified = table.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(unified.context("no unified hierarchy")?.to_owned())
}

#[test]
fn a_vmm_lives_in_its_pods_cgroup_and_takes_it_away() -> Result<()> {
    let Some(root) = root() else { return Ok(()) };
    on_fake(START_TIMEOUT_MS, |node| {
        let mark = std::process::id();
        for (name, parent, path) in [
            ("none", String::new(), String::new()),
            ("path", format!("/it{mark}/pod1"), format!("/it{mark}/pod1")),
            (
                "slice",
                format!("it{mark}-burstable-pod2.slice"),
                format!("/it{mark}.slice/it{mark}-burstable.slice/it{mark}-burstable-pod2.slice"),
            ),
        ] {
            let pod = node.cri().run_pod(config(node, name, &parent))?;
            assert_eq!(cgroup(node, &pod)?, format!("{path}/isopod-{pod}"));
            // The next daemon finds it by the record alone.
            node.kill_daemon();
            node.start_daemon()?;
            node.cri().stop_pod(&pod)?;
            let first = path.split('/').nth(1).unwrap_or("isopod-").to_owned();
            assert!(
                !root
                    .join(&path[path.len().min(1)..])
                    .join(format!("isopod-{pod}"))
                    .exists()
            );
            assert!(
                first == "isopod-" || !root.join(first).exists(),
                "{path} is left"
            );
            node.cri().remove_pod(&pod)?;
        }
        Ok(())
    })
}

#[test]
fn a_cgroup_that_was_there_stays_and_a_killed_vmms_goes() -> Result<()> {
    let Some(root) = root() else { return Ok(()) };
    let own = root.join(format!("it{}-there", std::process::id()));
    fs::create_dir_all(own.join("pod"))?;
    let parent = format!("/{}/pod", own.file_name().context("a name")?.display());
    let tested = on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.cri().run_pod(config(node, "killed", &parent))?;
        node.vmm(&pod)?.kill();
        wait_not_ready(node, &pod)?;
        node.cri().remove_pod(&pod)?;
        assert_eq!(folders(&own.join("pod"))?, Vec::<PathBuf>::new());
        Ok(())
    });
    fs::remove_dir(own.join("pod"))?;
    fs::remove_dir(&own)?;
    tested
}

fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_dir()).collect())
}

#[test]
fn a_sandbox_that_does_not_start_leaves_no_cgroup() -> Result<()> {
    let Some(root) = root() else { return Ok(()) };
    let name = format!("it{}-fails", std::process::id());
    // Its guest does not answer.
    on_fake(1_000, |node| {
        let failed = node
            .cri()
            .run_pod(config(node, "mute", &format!("/{name}/pod")));
        assert_refused(failed, Code::DeadlineExceeded, "");
        wait_until_traceless(node)?;
        assert!(!root.join(&name).exists());
        for parent in ["/a/../b", "a--b.slice"] {
            let refused = node.cri().run_pod(config(node, "bad", parent));
            assert_refused(refused, Code::InvalidArgument, "config.linux.cgroup_parent");
        }
        Ok(())
    })
}

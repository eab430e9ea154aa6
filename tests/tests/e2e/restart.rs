//! The daemon is killed at any moment and started again: no pod, exit code or log line is lost.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use isopod_proto::cri::{ContainerState, PodSandboxState};
use isopod_tests::log::{Stream, parse, texts};
use isopod_tests::node::{self, Node, Options, pod_config, shell};
use isopod_tests::wait::{LIMIT, wait_for};

#[test]
fn every_line_is_in_the_log_once_when_the_daemon_is_killed_while_a_container_prints() -> Result<()>
{
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("print")?;
        let script = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo line $i; usleep 10000; done";
        let id = node.start(&pod, shell("c", script))?;
        let vmm = node.vmm(&pod)?.pid;
        let path = node.cri().container_status(&id)?.log_path;
        for marker in ["line 50\n", "line 200\n"] {
            node.wait_logged(&id, marker)?;
            node.kill_daemon();
            // The container prints on with nobody to serve the CRI.
            let before = std::fs::read(&path)?.len();
            wait_for("more output", LIMIT, || {
                (std::fs::read(&path).ok()?.len() > before).then_some(())
            })?;
            node.start_daemon()?;
            let status = node.cri().container_status(&id)?;
            assert_eq!(status.state(), ContainerState::ContainerRunning);
            assert_eq!(node.vmm(&pod)?.pid, vmm, "the same machine");
            assert_eq!(node.exec(&id, "echo alive")?, b"alive\n");
        }
        assert_eq!(node.wait_exited(&id)?.exit_code, 0);
        let wanted: Vec<String> = (1..=600).map(|number| format!("line {number}")).collect();
        assert_eq!(texts(&node.container_log(&id)?, Stream::Stdout), wanted);
        Ok(())
    })
}

#[test]
fn a_container_that_ends_while_the_daemon_is_down_keeps_its_exit_code() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("down")?;
        let id = node.start(&pod, shell("c", "echo started; sleep 3; echo done; exit 7"))?;
        node.wait_logged(&id, "started")?;
        let path = node.cri().container_status(&id)?.log_path;
        node.kill_daemon();
        wait_for("the container's last line", LIMIT, || {
            let log = parse(&std::fs::read(&path).ok()?).ok()?;
            (texts(&log, Stream::Stdout).last()? == "done").then_some(())
        })?;
        sleep(Duration::from_secs(2));
        node.start_daemon()?;
        let status = node.wait_exited(&id)?;
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
        assert!(status.finished_at > status.started_at);
        Ok(())
    })
}

#[test]
fn a_restarted_daemon_stops_rotates_and_starts_as_before() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("work")?;
        let script = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
        let running = node.start(&pod, shell("running", script))?;
        let created = node.create(&pod, shell("created", "echo hello; exit 4"))?;
        let (exited, _) = node.run_script(&pod, "exited", "exit 5")?;
        node.wait_logged(&running, "ready")?;
        let before = all(node)?;
        node.kill_daemon();
        node.start_daemon()?;
        assert_eq!(all(node)?, before, "what is listed");
        assert_eq!(node.cri().container_status(&exited.id)?, exited);

        node.cri()
            .start(&created)
            .context("a container from before the restart")?;
        assert_eq!(node.wait_exited(&created)?.exit_code, 4);
        assert_eq!(
            texts(&node.container_log(&created)?, Stream::Stdout),
            ["hello"]
        );

        let path = node.cri().container_status(&running)?.log_path;
        std::fs::rename(&path, format!("{path}.1"))?;
        node.cri().reopen_log(&running)?;
        node.cri().stop(&running, 60)?;
        assert_eq!(node.cri().container_status(&running)?.exit_code, 9);
        assert_eq!(
            texts(&parse(&std::fs::read(&path)?)?, Stream::Stdout),
            ["bye"]
        );

        let (status, _) = node.run_script(&pod, "new", "exit 6")?;
        assert_eq!(status.exit_code, 6);
        node.cri().stop_pod(&pod)?;
        node.kill_daemon();
        node.start_daemon()?;
        let state = node
            .cri()
            .pod_status(&pod)?
            .status
            .context("no status")?
            .state();
        assert_eq!(state, PodSandboxState::SandboxNotready);
        Ok(())
    })
}

/// Ids and states of everything, in the order of ids.
fn all(node: &Node) -> Result<Vec<(String, i32)>> {
    let pods = node
        .cri()
        .pods(None)?
        .into_iter()
        .map(|pod| (pod.id, pod.state));
    let containers = node
        .cri()
        .containers(None)?
        .into_iter()
        .map(|it| (it.id, it.state));
    let mut all: Vec<(String, i32)> = pods.chain(containers).collect();
    all.sort();
    Ok(all)
}

#[test]
fn a_daemon_that_is_killed_while_it_makes_a_sandbox_leaves_nothing_when_it_is_back() -> Result<()> {
    node::run(Options::kvm(), |node| {
        for wait_ms in [50, 300, 1000, 2500] {
            std::thread::scope(|scope| {
                let run = scope.spawn(|| node.cri().run_pod(pod_config(node, "half")));
                sleep(Duration::from_millis(wait_ms));
                node.kill_daemon();
                let _ = run.join().expect("a call does not panic");
                node.start_daemon()
            })?;
            // A sandbox that was ready before the kill is kept; any other has no trace.
            for pod in node.cri().pods(None)? {
                node.cri().remove_pod(&pod.id)?;
            }
            wait_for("VMMs of half-made sandboxes to end", LIMIT, || {
                node.vmms().is_empty().then_some(())
            })?;
        }
        let pod = node.cri().run_pod(pod_config(node, "half"))?;
        node.cri().remove_pod(&pod)?;
        Ok(())
    })
}

#[test]
fn a_machine_that_died_while_the_daemon_was_down_is_not_ready() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("dead")?;
        let id = node.start(&pod, shell("c", "sleep 10000"))?;
        let vmm = node.vmm(&pod)?;
        node.kill_daemon();
        vmm.kill();
        node.start_daemon()?;
        let status = node.wait_exited(&id)?;
        assert_eq!(status.exit_code, 137);
        let state = node
            .cri()
            .pod_status(&pod)?
            .status
            .context("no status")?
            .state();
        assert_eq!(state, PodSandboxState::SandboxNotready);
        Ok(())
    })
}

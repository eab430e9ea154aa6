//! Machines that die under their containers.

use anyhow::{Context as _, Result};
use isopod_proto::cri::{ContainerState, PodSandboxState};
use isopod_tests::node::{self, Node, Options, assert_refused, pod_config, shell};
use isopod_tests::wait::{LIMIT, wait_for};
use tonic::Code;

fn wait_not_ready(node: &Node, pod: &str) -> Result<()> {
    wait_for("the sandbox to be NotReady", LIMIT, || {
        let state = node.cri().pod_status(pod).ok()?.status?.state();
        (state == PodSandboxState::SandboxNotready).then_some(())
    })
}

#[test]
fn a_vmm_killed_with_sigkill_ends_its_containers_with_137() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("killed")?;
        let running = node.start(&pod, shell("running", "sleep 10000"))?;
        let (exited, _) = node.run_script(&pod, "exited", "exit 3")?;
        let created = node.create(&pod, shell("created", "true"))?;
        node.vmm(&pod)?.kill();
        wait_not_ready(node, &pod)?;
        let status = node.wait_exited(&running)?;
        assert_eq!(status.exit_code, 137);
        assert!(!status.message.is_empty(), "why it ended");
        assert_eq!(
            node.cri().container_status(&exited.id)?.exit_code,
            3,
            "as it was"
        );
        let state = node.cri().container_status(&created)?.state();
        assert!(
            matches!(
                state,
                ContainerState::ContainerExited | ContainerState::ContainerCreated
            ),
            "{state:?}"
        );
        assert_refused(
            node.cri().exec(&running, &["true"], 0),
            Code::FailedPrecondition,
            "",
        );
        let create = node
            .cri()
            .create(&pod, shell("new", "true"), pod_config(node, "killed"));
        assert_refused(create, Code::FailedPrecondition, "not ready");
        node.cri().stop(&running, 10)?;
        node.cri().remove(&running)?;
        node.cri().stop_pod(&pod)?;
        node.cri().remove_pod(&pod)?;
        Ok(())
    })
}

#[test]
fn a_vmm_killed_during_an_exec_ends_the_call() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("exec")?;
        let id = node.start(&pod, shell("c", "sleep 10000"))?;
        let vmm = node.vmm(&pod)?;
        let answer = std::thread::scope(|scope| {
            let exec = scope.spawn(|| {
                node.cri()
                    .exec(&id, &["sh", "-c", "echo on > /on; sleep 1000"], 0)
            });
            wait_for("the exec to run", LIMIT, || node.exec(&id, "cat /on").ok())?;
            vmm.kill();
            exec.join().ok().context("the call panicked")
        })?;
        assert!(answer.is_err(), "{answer:?}");
        Ok(())
    })
}

#[test]
fn a_guest_that_panics_is_told_apart_from_one_that_was_killed() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let (pod, id) = node.start_privileged("panic", "echo c > /proc/sysrq-trigger")?;
        wait_not_ready(node, &pod)?;
        let status = node.wait_exited(&id)?;
        assert_eq!(status.exit_code, 137);
        assert!(status.message.contains("panic"), "{status:?}");
        Ok(())
    })
}

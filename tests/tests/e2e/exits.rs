//! How containers and commands in them end.

use anyhow::Result;
use isopod_proto::cri::{
    ContainerState, LinuxContainerConfig, LinuxContainerResources, PodSandboxState,
};
use isopod_tests::log::{Stream, texts};
use isopod_tests::node::{self, Options, assert_refused, container_config, pod_config, shell};
use tonic::Code;

#[test]
fn exit_codes_and_signals_are_told_as_cri_wants_them() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("exits")?;
        for (name, script, code, reason) in [
            ("zero", "exit 0", 0, "Completed"),
            ("seven", "exit 7", 7, "Error"),
            ("all", "exit 255", 255, "Error"),
            ("killed", "kill -KILL $$", 137, "Error"),
            ("terminated", "kill -TERM $$; sleep 100", 143, "Error"),
            ("missing-in-shell", "no-such-command", 127, "Error"),
        ] {
            let (status, _) = node.run_script(&pod, name, script)?;
            assert_eq!(
                (status.exit_code, status.reason.as_str()),
                (code, reason),
                "{name}"
            );
            assert!(
                status.created_at > 0 && status.started_at >= status.created_at,
                "{name}"
            );
            assert!(
                status.finished_at >= status.started_at,
                "{name}: {status:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn stop_sends_the_signal_waits_and_then_kills() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("stop")?;
        let polite = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
        let id = node.start(&pod, shell("polite", polite))?;
        node.wait_logged(&id, "ready")?;
        node.cri().stop(&id, 60)?;
        assert_eq!(node.cri().container_status(&id)?.exit_code, 9);
        assert_eq!(
            texts(&node.container_log(&id)?, Stream::Stdout),
            ["ready", "bye"]
        );

        let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
        let id = node.start(&pod, shell("stubborn", stubborn))?;
        node.wait_logged(&id, "ready")?;
        node.cri().stop(&id, 1)?;
        assert_eq!(node.cri().container_status(&id)?.exit_code, 137);
        Ok(())
    })
}

#[test]
fn a_command_that_does_not_exist_is_named_and_leaves_nothing_running() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("missing")?;
        let id = node.create(
            &pod,
            container_config("c", "busybox", &["/no/such/command"]),
        )?;
        let missing = "/no/such/command";
        assert_refused(node.cri().start(&id), Code::FailedPrecondition, missing);
        let status = node.cri().container_status(&id)?;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!(status.exit_code, 128, "as containerd has it");
        assert_eq!(status.reason, "StartError");
        assert!(
            status.message.contains("/no/such/command"),
            "{}",
            status.message
        );
        let (status, _) = node.run_script(&pod, "next", "exit 0")?;
        assert_eq!(status.exit_code, 0);
        Ok(())
    })
}

#[test]
fn exec_sync_returns_streams_apart_and_the_exit_code() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("exec")?;
        let id = node.start(&pod, shell("c", "sleep 10000"))?;
        let answer = node.exec_any(&id, "echo out; echo err >&2; exit 3")?;
        assert_eq!(answer.stdout, b"out\n");
        assert_eq!(answer.stderr, b"err\n");
        assert_eq!(answer.exit_code, 3);

        let large = node.exec(&id, "head -c 3000000 /dev/zero")?;
        assert_eq!(large.len(), 3_000_000);
        assert!(large.iter().all(|byte| *byte == 0));

        let input = node.exec(&id, "cat; echo end-of-input")?;
        assert_eq!(input, b"end-of-input\n");
        let missing = node.cri().exec(&id, &["/no/such/command"], 0);
        assert_refused(missing, Code::FailedPrecondition, "/no/such/command");
        let empty = node.cri().exec(&id, &[], 0);
        assert_refused(empty, Code::InvalidArgument, "cmd");
        Ok(())
    })
}

#[test]
fn exec_sync_that_takes_too_long_is_killed_with_all_its_children() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("slow")?;
        let id = node.start(&pod, shell("c", "sleep 10000"))?;
        let slow = node
            .cri()
            .exec(&id, &["/bin/sh", "-c", "echo; sleep 12345"], 2);
        assert_refused(slow, Code::DeadlineExceeded, "");
        let left = node.exec_any(
            &id,
            "sleep 1; ps -o args | grep -v grep | grep 'sleep 12345'",
        )?;
        assert_eq!(String::from_utf8_lossy(&left.stdout), "");
        Ok(())
    })
}

#[test]
fn exec_in_a_container_that_is_not_running_is_refused() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("idle")?;
        let id = node.create(&pod, shell("c", "true"))?;
        assert_refused(
            node.cri().exec(&id, &["true"], 0),
            Code::FailedPrecondition,
            &id,
        );
        node.cri().start(&id)?;
        node.wait_exited(&id)?;
        assert_refused(
            node.cri().exec(&id, &["true"], 0),
            Code::FailedPrecondition,
            &id,
        );
        assert_refused(node.cri().start(&id), Code::FailedPrecondition, &id);
        Ok(())
    })
}

#[test]
fn a_container_over_its_memory_limit_is_killed_and_its_neighbour_lives() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("limit")?;
        let neighbour = node.start(&pod, shell("neighbour", "sleep 10000"))?;
        let mut config = container_config("greedy", "busybox", &["tail", "/dev/zero"]);
        config.linux = Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 32 * 1024 * 1024,
                memory_swap_limit_in_bytes: 32 * 1024 * 1024,
                ..LinuxContainerResources::default()
            }),
            ..LinuxContainerConfig::default()
        });
        let id = node.start(&pod, config)?;
        let status = node.wait_exited(&id)?;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "OOMKilled")
        );
        node.exec(&neighbour, "true")?;
        Ok(())
    })
}

#[test]
fn a_guest_out_of_memory_kills_the_container_and_stays_usable() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("oom")?;
        let id = node.start(
            &pod,
            container_config("greedy", "busybox", &["tail", "/dev/zero"]),
        )?;
        let status = node.wait_exited(&id)?;
        assert_eq!(status.exit_code, 137, "{status:?}");
        let state = node
            .cri()
            .pod_status(&pod)?
            .status
            .map(|status| status.state());
        assert_eq!(state, Some(PodSandboxState::SandboxReady));
        let (status, _) = node.run_script(&pod, "next", "exit 0")?;
        assert_eq!(status.exit_code, 0);
        Ok(())
    })
}

#[test]
fn writing_and_reading_more_than_memory_is_not_out_of_memory() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("files")?;
        let script = |mib: u32| {
            format!("dd if=/dev/zero of=/big bs=1M count={mib} && cat /big > /dev/null && rm /big")
        };
        let mut limited = shell("limited", &script(160));
        limited.linux = Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 40 * 1024 * 1024,
                ..LinuxContainerResources::default()
            }),
            ..LinuxContainerConfig::default()
        });
        // The guest has 256 MiB.
        let free = shell("free", &script(400));
        for config in [limited, free] {
            let id = node.start(&pod, config)?;
            let status = node.wait_exited(&id)?;
            assert_eq!(status.exit_code, 0, "{status:?}");
        }
        Ok(())
    })
}

#[test]
fn a_container_that_crashes_in_a_loop_leaves_nothing_in_the_guest() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("loop")?;
        let watcher = node.start(&pod, shell("watcher", "sleep 10000"))?;
        let vmm = node.vmm(&pod)?.pid;
        let descriptors = || isopod_tests::process::Process::descriptors(vmm).len();
        let memory = || -> Result<u64> {
            let text = node.exec(&watcher, "grep MemAvailable /proc/meminfo | tr -dc 0-9")?;
            Ok(String::from_utf8(text)?.trim().parse()?)
        };
        let mut first = None;
        for attempt in 0..12 {
            let mut config = shell("crash", "exit 1");
            if let Some(metadata) = &mut config.metadata {
                metadata.attempt = attempt;
            }
            let id = node.cri().create(&pod, config, pod_config(node, "loop"))?;
            node.cri().start(&id)?;
            assert_eq!(node.wait_exited(&id)?.exit_code, 1);
            node.cri().remove(&id)?;
            // What the first rounds allocate for good is no leak.
            if attempt == 2 {
                first = Some((descriptors(), memory()?));
            }
        }
        let (first_descriptors, first_memory) = first.expect("the loop has more than two rounds");
        assert_eq!(descriptors(), first_descriptors, "the VMM's descriptors");
        let lost = first_memory.saturating_sub(memory()?);
        assert!(lost < 8 * 1024, "the guest lost {lost} KiB in nine rounds");
        Ok(())
    })
}

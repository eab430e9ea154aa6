//! The daemon as a process, on a VMM that boots nothing (`examples/fake-isopod-vmm/`): what it
//! does when it is killed, when its VMMs are, and when they misbehave.
//!
//! Needs root, for folders in `/run`, and no KVM. That pods really run is for the end-to-end tests
//! to show. Every test ends with their leak check.

mod cgroups;
mod fake;
mod network;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{
    ContainerState, ExecSyncRequest, PodSandboxState, PodSandboxStats, RunPodSandboxRequest,
};
use isopod_tests::log::{Stream, texts};
use isopod_tests::node::{Node, image, pod_config, shell};
use isopod_tests::process::Process;
use isopod_tests::wait::wait_for;
use tonic::Code;

use self::fake::{START_TIMEOUT_MS, on_fake};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

fn printed(node: &Node, container: &str) -> Result<Vec<String>> {
    Ok(texts(&node.container_log(container)?, Stream::Stdout))
}

fn pod_state(node: &Node, pod: &str) -> Result<PodSandboxState> {
    let status = node.cri().pod_status(pod)?.status.context("no status")?;
    Ok(status.state())
}

fn wait_not_ready(node: &Node, pod: &str) -> Result<()> {
    wait_for("the sandbox to end", LIMIT, || {
        let state = pod_state(node, pod).ok()?;
        (state == PodSandboxState::SandboxNotready).then_some(())
    })
}

/// Nothing of any sandbox is left, while the daemon runs.
fn wait_until_traceless(node: &Node) -> Result<()> {
    let folders = [
        node.state_dir().join("sandboxes"),
        node.root_dir().join("sandboxes"),
    ];
    let empty = |folder: &PathBuf| {
        std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
    };
    wait_for("every trace to go", LIMIT, || {
        (node.vmms().is_empty() && folders.iter().all(empty)).then_some(())
    })
}

#[test]
fn container_runs_prints_and_tells_how_it_ended() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("plain")?;
        let (status, log) =
            node.run_script(&pod, "main", "echo one; echo two; echo bad >&2; exit 3")?;
        assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
        assert!(status.created_at <= status.started_at);
        assert!(status.started_at <= status.finished_at);
        assert_eq!(texts(&log, Stream::Stdout), ["one", "two"]);
        assert_eq!(texts(&log, Stream::Stderr), ["bad"]);
        // The sandbox outlives its last container, and takes another one.
        node.cri().remove(&status.id)?;
        assert_eq!(pod_state(node, &pod)?, PodSandboxState::SandboxReady);
        let (status, _) = node.run_script(&pod, "main", "true")?;
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
        Ok(())
    })
}

#[test]
fn killed_daemon_loses_no_line_and_no_exit_code() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("survivor")?;
        let script =
            "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 7";
        let long = node.start(&pod, shell("long", script))?;
        let short = node.start(&pod, shell("short", "sleep 0.5; echo gone; exit 9"))?;
        let created = node.create(&pod, shell("created", "exit 4"))?;
        node.wait_logged(&long, "line 20")?;
        node.kill_daemon();
        std::thread::sleep(Duration::from_secs(1));
        node.start_daemon()?;

        assert_eq!(pod_state(node, &pod)?, PodSandboxState::SandboxReady);
        assert_eq!(node.exec(&long, "echo hello")?, b"hello\n");
        let short = node.wait_exited(&short)?;
        assert_eq!(short.exit_code, 9);
        assert_eq!(printed(node, &short.id)?, ["gone"]);
        node.cri().start(&created)?;
        assert_eq!(node.wait_exited(&created)?.exit_code, 4);

        node.kill_daemon();
        node.start_daemon()?;
        let long = node.wait_exited(&long)?;
        assert_eq!((long.exit_code, long.reason.as_str()), (7, "Error"));
        let expected: Vec<String> = (0..300).map(|line| format!("line {line}")).collect();
        assert_eq!(printed(node, &long.id)?, expected);
        // What has ended is still known after a restart, and can be removed.
        node.kill_daemon();
        node.start_daemon()?;
        assert_eq!(node.cri().container_status(&short.id)?.exit_code, 9);
        Ok(())
    })
}

#[test]
fn killed_vmm_is_an_ordinary_end() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("victim")?;
        let running = node.start(&pod, shell("running", "exec sleep 1000"))?;
        let created = node.create(&pod, shell("created", "true"))?;
        node.vmm(&pod)?.kill();
        let status = node.wait_exited(&running)?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        assert!(status.message.contains("killed"), "{}", status.message);
        wait_not_ready(node, &pod)?;
        assert_eq!(node.wait_exited(&created)?.exit_code, 137);
        let error = node.cri().start(&created).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        let error = node.cri().exec(&running, &["true"], 0).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        Ok(())
    })
}

#[test]
fn guest_that_never_says_what_it_uses_is_left_out_of_lists_and_times_out_alone() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let start = |name| -> Result<(String, String)> {
            let pod = node.busybox_pod(name)?;
            let container = node.start(&pod, shell("main", "exec sleep 1000"))?;
            Ok((pod, container))
        };
        let (awake, awake_container) = start("awake")?;
        let (sleepy, sleepy_container) = start("sleepy")?;
        let begun = Instant::now();
        let pods = node.cri().all_pod_stats(None)?;
        let ids = |stats: &[PodSandboxStats]| -> Vec<String> {
            let attributes = stats.iter().filter_map(|it| it.attributes.as_ref());
            attributes.map(|it| it.id.clone()).collect()
        };
        assert_eq!(ids(&pods), [awake.as_str()]);
        let containers = node.cri().all_container_stats(None)?;
        let told = containers.iter().filter_map(|it| it.attributes.as_ref());
        let told: Vec<&str> = told.map(|it| it.id.as_str()).collect();
        assert_eq!(told, [awake_container.as_str()]);
        for (refused, code) in [
            (
                node.cri().pod_stats(&sleepy).map(drop),
                Code::DeadlineExceeded,
            ),
            (
                node.cri().container_stats(&sleepy_container).map(drop),
                Code::DeadlineExceeded,
            ),
        ] {
            assert_eq!(refused.unwrap_err().code(), code);
        }
        ensure!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());

        node.vmm(&awake)?.kill();
        wait_not_ready(node, &awake)?;
        assert!(node.cri().all_pod_stats(None)?.is_empty());
        let error = node.cri().pod_stats(&awake).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        node.wait_exited(&awake_container)?;
        let error = node.cri().container_stats(&awake_container).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        Ok(())
    })
}

#[test]
fn vmm_killed_while_the_daemon_is_away_is_found_dead() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("victim")?;
        let running = node.start(&pod, shell("running", "exec sleep 1000"))?;
        node.kill_daemon();
        for vmm in node.vmms() {
            vmm.kill();
        }
        node.start_daemon()?;
        wait_not_ready(node, &pod)?;
        let status = node.wait_exited(&running)?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        // Its name is still taken, as before.
        let error = node.cri().run_pod(pod_config(node, "victim")).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        Ok(())
    })
}

#[test]
fn guest_that_does_not_answer_in_time_leaves_no_trace() -> Result<()> {
    on_fake(1_000, |node| {
        let begun = Instant::now();
        let error = node.cri().run_pod(pod_config(node, "mute")).unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(begun.elapsed() < LIMIT);
        wait_until_traceless(node)?;
        assert!(node.cri().pods(None)?.is_empty());
        // The name is free again.
        let mut config = pod_config(node, "mute");
        config.hostname = "talks".into();
        node.cri().run_pod(config)?;
        Ok(())
    })
}

#[test]
fn caller_that_leaves_in_the_middle_of_a_start_leaves_no_trace() -> Result<()> {
    on_fake(600_000, |node| {
        let request = RunPodSandboxRequest {
            config: Some(pod_config(node, "mute")),
            runtime_handler: "isopod".into(),
        };
        let error = node
            .cri()
            .runtime(async |mut cri| {
                let call = cri.run_pod_sandbox(request);
                let limit = Duration::from_secs(1);
                let gave_up = tonic::Status::cancelled("the test gave up");
                tokio::time::timeout(limit, call)
                    .await
                    .unwrap_or(Err(gave_up))
            })
            .unwrap_err();
        assert_eq!(error.code(), Code::Cancelled, "{error}");
        wait_until_traceless(node)?;
        assert!(node.cri().pods(None)?.is_empty());
        Ok(())
    })
}

#[test]
fn guest_that_does_not_power_off_is_ended_anyway() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("stubborn")?;
        let running = node.start(&pod, shell("running", "exec sleep 1000"))?;
        for _ in 0..2 {
            node.cri().stop_pod(&pod)?;
        }
        assert_eq!(pod_state(node, &pod)?, PodSandboxState::SandboxNotready);
        assert!(node.vmms().is_empty());
        let status = node.cri().container_status(&running)?;
        assert_eq!((status.exit_code, status.message.as_str()), (137, ""));
        let error = node.create(&pod, shell("late", "true")).unwrap_err();
        let error = error.downcast::<tonic::Status>()?;
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        Ok(())
    })
}

#[test]
fn container_that_cannot_be_created_leaves_no_trace() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("full")?;
        for _ in 0..2 {
            let error = node.create(&pod, shell("main", "true")).unwrap_err();
            let error = error.downcast::<tonic::Status>()?;
            assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        }
        assert!(node.cri().containers(None)?.is_empty());
        let info = node
            .cri()
            .pod_status(&pod)?
            .info
            .remove("info")
            .context("no info")?;
        let info: serde_json::Value = serde_json::from_str(&info)?;
        assert_eq!(info["machine"]["disks"], serde_json::json!(["scratch"]));
        let records = node
            .root_dir()
            .join("sandboxes")
            .join(&pod)
            .join("containers");
        assert_eq!(std::fs::read_dir(records)?.count(), 0);
        Ok(())
    })
}

#[test]
fn command_that_is_not_there_is_a_start_error() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("typo")?;
        let mut config = shell("main", "");
        config.command = vec!["no-such-command".into()];
        let id = node.create(&pod, config)?;
        let error = node.cri().start(&id).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("no-such-command"), "{error}");
        let status = node.cri().container_status(&id)?;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError")
        );
        assert!(
            status.message.contains("no-such-command"),
            "{}",
            status.message
        );
        let error = node.cri().start(&id).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        Ok(())
    })
}

#[test]
fn stopping_asks_then_kills() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("stopped")?;
        let polite = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
        let polite = node.start(&pod, shell("polite", polite))?;
        let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
        let deaf = node.start(&pod, shell("deaf", deaf))?;
        node.wait_logged(&polite, "ready")?;
        node.wait_logged(&deaf, "ready")?;
        node.cri().stop(&polite, 20)?;
        assert_eq!(node.cri().container_status(&polite)?.exit_code, 5);
        let begun = Instant::now();
        node.cri().stop(&deaf, 1)?;
        assert!(begun.elapsed() >= Duration::from_secs(1));
        let status = node.cri().container_status(&deaf)?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        // Both are idempotent, and so is stopping what is not there.
        node.cri().stop(&deaf, 1)?;
        node.cri().stop("0123", 1)?;
        node.cri().remove("0123")?;
        node.cri().stop_pod("0123")?;
        node.cri().remove_pod("0123")?;
        Ok(())
    })
}

#[test]
fn exec_sync_returns_output_and_ends_what_takes_too_long() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("execs")?;
        let id = node.start(&pod, shell("main", "exec sleep 1000"))?;
        let answer = node.exec_any(&id, "echo out; echo err >&2; exit 6")?;
        assert_eq!(
            (answer.stdout.as_slice(), answer.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
        assert_eq!(answer.exit_code, 6);
        let error = node.cri().exec(&id, &["sleep", "777"], 1).unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        let sleeps = || {
            Process::all()
                .into_iter()
                .any(|one| one.command_line == "sleep 777")
        };
        wait_for("the command to be killed", LIMIT, || {
            (!sleeps()).then_some(())
        })?;
        let error = node.cri().exec(&id, &["no-such-command"], 0).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        let error = node.cri().exec(&id, &[], 0).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        Ok(())
    })
}

#[test]
fn exec_sync_returns_every_byte_of_a_command_that_writes_and_leaves() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("writer")?;
        let id = node.start(&pod, shell("main", "exec sleep 1000"))?;
        let answer = node.exec_any(&id, "yes 0123456789abcde | head -c 3000000")?;
        assert_eq!(answer.stdout.len(), 3_000_000);
        Ok(())
    })
}

#[test]
fn command_whose_caller_leaves_is_killed() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("abandoned")?;
        let id = node.start(&pod, shell("main", "exec sleep 1000"))?;
        let request = ExecSyncRequest {
            container_id: id,
            cmd: vec!["sleep".into(), "888".into()],
            timeout: 0,
        };
        let error = node
            .cri()
            .runtime(async |mut cri| {
                let call = cri.exec_sync(request);
                let gave_up = tonic::Status::cancelled("the test gave up");
                let limit = Duration::from_secs(1);
                tokio::time::timeout(limit, call)
                    .await
                    .unwrap_or(Err(gave_up))
            })
            .unwrap_err();
        assert_eq!(error.code(), Code::Cancelled, "{error}");
        let sleeps = || {
            let mut all = Process::all().into_iter();
            all.any(|one| one.command_line == "sleep 888")
        };
        wait_for("the command to be killed", LIMIT, || {
            (!sleeps()).then_some(())
        })
    })
}

#[test]
fn sandbox_whose_guest_hangs_in_a_creation_can_be_stopped() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("frozen")?;
        std::thread::scope(|scope| {
            let creating = scope.spawn(|| node.create(&pod, shell("main", "true")));
            std::thread::sleep(Duration::from_secs(1));
            node.cri().stop_pod(&pod)?;
            let created = creating.join().expect("the call does not panic");
            let error = created.unwrap_err().downcast::<tonic::Status>()?;
            assert_eq!(error.code(), Code::Unavailable, "{error}");
            Ok(())
        })
    })
}

#[test]
fn log_goes_on_in_a_new_file_when_the_old_one_is_renamed() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("rotated")?;
        let folder = node.folder().join("go");
        let script = format!(
            "echo before; while [ ! -e {} ]; do sleep 0.02; done; echo after",
            folder.display()
        );
        let id = node.start(&pod, shell("main", &script))?;
        node.wait_logged(&id, "before")?;
        let log = PathBuf::from(node.cri().container_status(&id)?.log_path);
        let rotated = log.with_extension("1");
        std::fs::rename(&log, &rotated)?;
        node.cri().reopen_log(&id)?;
        std::fs::write(&folder, "")?;
        node.wait_exited(&id)?;
        assert_eq!(printed(node, &id)?, ["after"]);
        assert!(std::fs::read_to_string(rotated)?.ends_with("before\n"));
        let error = node.cri().reopen_log(&id).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        Ok(())
    })
}

#[test]
fn daemon_killed_at_any_moment_finds_or_undoes_what_it_was_doing() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        node.cri().pull(&image("busybox"))?;
        for round in 0..24_u64 {
            std::thread::scope(|scope| {
                let calls = scope.spawn(|| {
                    let pod = node.busybox_pod("crashing").ok()?;
                    let main = node.start(&pod, shell("main", "exec sleep 1000")).ok()?;
                    node.cri().remove(&main).ok()?;
                    node.cri().remove_pod(&pod).ok()
                });
                std::thread::sleep(Duration::from_millis(10 * round));
                node.kill_daemon();
                let _interrupted = calls.join();
            });
            node.start_daemon()?;
            for container in node.cri().containers(None)? {
                ensure!(!container.pod_sandbox_id.is_empty(), "round {round}");
            }
            for pod in node.cri().pods(None)? {
                // What is there works.
                if pod.state() == PodSandboxState::SandboxReady {
                    let (status, _) = node.run_script(&pod.id, "after", "exit 2")?;
                    assert_eq!(status.exit_code, 2, "round {round}");
                }
                node.cri().stop_pod(&pod.id)?;
                node.cri().remove_pod(&pod.id)?;
            }
            wait_until_traceless(node).with_context(|| format!("round {round}"))?;
        }
        Ok(())
    })
}

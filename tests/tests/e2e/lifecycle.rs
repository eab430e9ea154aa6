//! Pods and containers come and go, in every order that CRI allows.

use anyhow::{Context as _, Result};
use isopod_proto::cri::{
    ContainerState, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext, PodSandboxState,
};
use isopod_tests::log::{Stream, texts};
use isopod_tests::node::{
    self, Node, Options, assert_refused, container_config, image, pod_config, shell,
};
use tonic::Code;

fn pod_state(node: &Node, pod: &str) -> Result<PodSandboxState> {
    Ok(node
        .cri()
        .pod_status(pod)?
        .status
        .context("no status")?
        .state())
}

#[test]
fn a_second_container_joins_the_sandbox_and_reaches_the_first_over_loopback() -> Result<()> {
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("nginx"))?;
        let pod = node.busybox_pod("pair")?;
        let server = node.start(&pod, container_config("server", "nginx", &[]))?;
        node.wait_logged(&server, "start worker process")?;
        let (status, log) =
            node.run_script(&pod, "client", "wget -q -O - http://127.0.0.1/; hostname")?;
        assert_eq!(status.exit_code, 0, "{log:?}");
        let out = texts(&log, Stream::Stdout).join("\n");
        assert!(out.contains("served from inside a microVM"), "{out}");
        assert!(out.ends_with("pair"), "one host name for the pod: {out}");
        let client_sees = node.exec(&server, "ls /bin/wget /usr/sbin/nginx")?;
        assert_eq!(
            String::from_utf8_lossy(&client_sees),
            "/bin/wget\n/usr/sbin/nginx\n"
        );
        Ok(())
    })
}

#[test]
fn a_container_can_be_created_after_the_last_one_was_removed() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("again")?;
        let vmm = node.vmm(&pod)?.pid;
        for round in 0..3 {
            let name = format!("round-{round}");
            let (status, log) = node.run_script(&pod, &name, &format!("echo {name}"))?;
            assert_eq!(status.exit_code, 0);
            assert_eq!(texts(&log, Stream::Stdout), [name]);
            node.cri().remove(&status.id)?;
            assert_eq!(node.cri().containers(None)?, []);
            assert_eq!(pod_state(node, &pod)?, PodSandboxState::SandboxReady);
        }
        assert_eq!(node.vmm(&pod)?.pid, vmm, "the same machine all along");
        Ok(())
    })
}

#[test]
fn three_sandboxes_run_at_once_and_do_not_see_each_other() -> Result<()> {
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("busybox"))?;
        let names = ["one", "two", "three"];
        let ran = std::thread::scope(|scope| {
            let pods = names.map(|name| {
                scope.spawn(move || -> Result<_> {
                    let pod = node.cri().run_pod(pod_config(node, name))?;
                    let container =
                        node.start(&pod, shell("main", "hostname; exec sleep 10000"))?;
                    node.wait_logged(&container, name)?;
                    Ok((pod, container))
                })
            });
            pods.map(|pod| pod.join().expect("a pod's thread does not panic"))
        });
        let ran = ran.into_iter().collect::<Result<Vec<_>>>()?;
        assert_eq!(node.vmms().len(), 3);
        for (name, (_, container)) in names.iter().zip(&ran) {
            let host = node.exec(container, "hostname; ps | grep -c 'sleep 10000' ")?;
            let host = String::from_utf8_lossy(&host).into_owned();
            assert!(host.starts_with(name), "{host}");
        }
        node.cri().stop_pod(&ran[0].0)?;
        node.exec(&ran[1].1, "true")
            .context("a neighbour of a pod that was stopped")?;
        Ok(())
    })
}

#[test]
fn a_pods_name_and_attempt_are_taken_until_it_is_removed() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("taken")?;
        let again = || node.cri().run_pod(pod_config(node, "taken"));
        assert_refused(again(), Code::AlreadyExists, "taken");
        node.cri().stop_pod(&pod)?;
        assert_refused(again(), Code::AlreadyExists, "taken");

        let mut next = pod_config(node, "taken");
        if let Some(metadata) = &mut next.metadata {
            metadata.attempt = 1;
        }
        node.cri()
            .run_pod(next)
            .context("the next attempt is another pod")?;
        node.cri().remove_pod(&pod)?;
        again().context("the name is free after RemovePodSandbox")?;
        Ok(())
    })
}

#[test]
fn stopping_and_removing_twice_is_ok() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("twice")?;
        let id = node.start(&pod, shell("c", "sleep 10000"))?;
        for _ in 0..2 {
            node.cri().stop(&id, 0)?;
        }
        for _ in 0..2 {
            node.cri().remove(&id)?;
        }
        for _ in 0..2 {
            node.cri().stop_pod(&pod)?;
        }
        for _ in 0..2 {
            node.cri().remove_pod(&pod)?;
        }
        assert_refused(node.cri().pod_status(&pod), Code::NotFound, &pod);
        Ok(())
    })
}

#[test]
fn a_containers_name_is_taken_until_it_is_removed() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("names")?;
        let first = node.create(&pod, shell("same", "true"))?;
        let config = shell("same", "true");
        let again = node
            .cri()
            .create(&pod, config.clone(), pod_config(node, "names"));
        assert_refused(again, Code::AlreadyExists, "same");
        node.cri().remove(&first)?;
        node.create(&pod, config)?;
        Ok(())
    })
}

#[test]
fn removing_a_running_pod_and_its_containers_needs_no_stop() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("running")?;
        let id = node.start(&pod, shell("c", "sleep 10000"))?;
        node.cri()
            .remove(&id)
            .context("RemoveContainer stops what still runs")?;
        node.start(&pod, shell("d", "sleep 10000"))?;
        node.cri()
            .remove_pod(&pod)
            .context("RemovePodSandbox stops what still runs")?;
        assert_eq!(node.vmms().len(), 0);
        Ok(())
    })
}

#[test]
fn a_stopped_pod_takes_no_container_and_keeps_its_exited_ones() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("stopped")?;
        let id = node.start(
            &pod,
            shell("c", "trap 'exit 5' TERM; while :; do sleep 0.1; done"),
        )?;
        node.cri().stop_pod(&pod)?;
        assert_eq!(pod_state(node, &pod)?, PodSandboxState::SandboxNotready);
        let status = node.cri().container_status(&id)?;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert!(status.finished_at >= status.started_at && status.started_at >= status.created_at);
        let created = node
            .cri()
            .create(&pod, shell("d", "true"), pod_config(node, "stopped"));
        assert_refused(created, Code::FailedPrecondition, "not ready");
        assert_refused(node.cri().start(&id), Code::FailedPrecondition, "");
        assert_refused(
            node.cri().exec(&id, &["true"], 0),
            Code::FailedPrecondition,
            "",
        );
        Ok(())
    })
}

#[test]
fn removing_a_pod_leaves_its_image() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("image")?;
        let id = node.start(&pod, shell("c", "sleep 10000"))?;
        // The image's disk is open: what runs goes on without its name.
        node.cri().remove_image(&image("busybox"))?;
        node.exec(&id, "sha256sum /bin/busybox")?;
        node.cri().pull(&image("busybox"))?;
        node.cri().remove_pod(&pod)?;
        assert_eq!(node.cri().list_images()?.len(), 1);
        Ok(())
    })
}

#[test]
fn environment_working_directory_and_user_are_what_was_asked_for() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("config")?;
        let mut config = shell(
            "c",
            "echo $COLOUR; pwd; id -u; id -g; id -G; echo $1 $PATH; tty",
        );
        config.args = vec!["zero".into(), "argument".into()];
        config.working_dir = "/tmp".into();
        config.envs = vec![KeyValue {
            key: "COLOUR".into(),
            value: "grey".into(),
        }];
        config.linux = Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                run_as_username: "app".into(),
                supplemental_groups: vec![3000],
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        });
        let id = node.start(&pod, config)?;
        let status = node.wait_exited(&id)?;
        let lines = texts(&node.container_log(&id)?, Stream::Stdout);
        assert_eq!(lines[..4], ["grey", "/tmp", "1000", "1000"], "{status:?}");
        let mut groups: Vec<&str> = lines[4].split(' ').collect();
        groups.sort_unstable();
        assert_eq!(
            groups,
            ["1000", "2000", "3000"],
            "own, of /etc/group, supplemental"
        );
        assert_eq!(lines[5], "argument /bin:/usr/bin:/usr/sbin");
        assert_eq!(lines[6], "not a tty");
        Ok(())
    })
}

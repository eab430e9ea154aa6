//! Events of pods and containers, and lists as streams, on a VMM that boots nothing.

mod fake;

use std::sync::mpsc;

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
    StreamContainerStatsRequest, StreamContainersRequest, StreamPodSandboxStatsRequest,
    StreamPodSandboxesRequest,
};
use isopod_tests::node::{Node, pod_config, shell};
use isopod_tests::wait::{LIMIT, wait_for};
use tonic::{Code, Response};

use self::fake::{START_TIMEOUT_MS, on_fake};

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};

/// Listens while `work` is done, until the pod that it answers is deleted; what was heard.
fn heard_during(
    node: &Node,
    work: impl FnOnce() -> Result<String>,
) -> Result<Vec<ContainerEventResponse>> {
    let (ready, listening) = mpsc::channel();
    let (told, pod) = mpsc::channel::<String>();
    std::thread::scope(|scope| {
        let listener = scope.spawn(move || {
            let mut last = None;
            node.cri().events(
                || ready.send(()).expect("the test waits"),
                |heard| {
                    last = pod.try_recv().ok().or(last.take());
                    let deleted = |event: &ContainerEventResponse| {
                        event.container_event_type() == Deleted
                            && Some(&event.container_id) == last.as_ref()
                    };
                    heard.last().is_some_and(deleted)
                },
            )
        });
        listening.recv().context("the listener has ended")?;
        let pod = work()?;
        told.send(pod.clone())?;
        node.cri().remove_pod(&pod)?;
        let heard = listener.join().expect("the listener does not panic")?;
        Ok(heard)
    })
}

fn names(heard: &[ContainerEventResponse]) -> Vec<(&str, ContainerEventType)> {
    heard
        .iter()
        .map(|event| (event.container_id.as_str(), event.container_event_type()))
        .collect()
}

#[test]
fn life_of_a_pod_is_told_in_order_and_as_it_was() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let mut container = String::new();
        let mut id = String::new();
        let heard = heard_during(node, || {
            let pod = node.busybox_pod("told")?;
            let (status, _) = node.run_script(&pod, "main", "exit 3")?;
            node.cri().remove(&status.id)?;
            node.cri().stop_pod(&pod)?;
            container = status.id;
            id.clone_from(&pod);
            Ok(pod)
        })?;
        let (pod, container) = (id.as_str(), container.as_str());
        assert_eq!(
            names(&heard),
            [
                (pod, Created),
                (pod, Started),
                (container, Created),
                (container, Started),
                (container, Stopped),
                (container, Deleted),
                (pod, Stopped),
                (pod, Deleted),
            ]
        );
        let times: Vec<i64> = heard.iter().map(|event| event.created_at).collect();
        ensure!(times.is_sorted(), "{times:?}");
        let states: Vec<Vec<ContainerState>> = heard
            .iter()
            .map(|event| {
                event
                    .containers_statuses
                    .iter()
                    .map(|it| it.state())
                    .collect()
            })
            .collect();
        let (created, running, exited) = (
            ContainerState::ContainerCreated,
            ContainerState::ContainerRunning,
            ContainerState::ContainerExited,
        );
        assert_eq!(
            states,
            [
                vec![],
                vec![],
                vec![created],
                vec![running],
                vec![exited],
                vec![],
                vec![],
                vec![]
            ]
        );
        assert_eq!(heard[4].containers_statuses[0].exit_code, 3);
        let ready: Vec<bool> = heard
            .iter()
            .filter_map(|event| event.pod_sandbox_status.as_ref())
            .map(|status| status.state() == PodSandboxState::SandboxReady)
            .collect();
        assert_eq!(ready, [true, true, true, true, true, true, false, false]);
        Ok(())
    })
}

#[test]
fn killed_vmm_stops_its_containers_and_its_pod() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let mut ids = (String::new(), String::new());
        let heard = heard_during(node, || {
            let pod = node.busybox_pod("victim")?;
            let container = node.start(&pod, shell("main", "exec sleep 1000"))?;
            node.vmm(&pod)?.kill();
            let status = node.wait_exited(&container)?;
            assert_eq!(status.exit_code, 137);
            ids = (pod.clone(), container);
            Ok(pod)
        })?;
        let (pod, container) = ids;
        let stopped: Vec<_> = names(&heard)
            .into_iter()
            .filter(|(_, kind)| *kind == Stopped)
            .map(|(id, _)| id.to_owned())
            .collect();
        assert_eq!(stopped.len(), 2, "{stopped:?}");
        ensure!(stopped.contains(&pod) && stopped.contains(&container));
        let told = heard.iter().find(|event| {
            event.container_id == container && event.container_event_type() == Stopped
        });
        let status = &told
            .context("no event of the container's end")?
            .containers_statuses[0];
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        Ok(())
    })
}

/// Resident memory of the daemon, KiB.
fn resident_kib(node: &Node) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon_pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

#[test]
fn listener_that_never_reads_is_cut_off_and_holds_nobody_up() -> Result<()> {
    const EVENTS: usize = 200;
    on_fake(START_TIMEOUT_MS, |node| {
        // Each event has the pod's annotations: 200 of them are 40 MB.
        let mut config = pod_config(node, "loud");
        config.annotations = [("note".to_owned(), "x".repeat(200_000))].into();
        node.cri().pull(&isopod_tests::node::image("busybox"))?;
        let pod = node.cri().run_pod(config.clone())?;
        let (ready, listening) = mpsc::channel();
        let (done, wake_up) = tokio::sync::oneshot::channel::<()>();
        let deaf = std::thread::scope(|scope| {
            let deaf = scope.spawn(|| {
                node.cri().runtime(async |mut cri| {
                    let answer = cri.get_container_events(GetEventsRequest {}).await?;
                    let mut stream = answer.into_inner();
                    ready.send(()).expect("the test waits");
                    let _woken = wake_up.await;
                    let mut heard = 0;
                    let end = loop {
                        match stream.message().await {
                            Ok(Some(_)) => heard += 1,
                            Ok(None) => break None,
                            Err(status) => break Some(status),
                        }
                    };
                    Ok(Response::new((heard, end)))
                })
            });
            listening.recv().context("the deaf listener has ended")?;
            let before = resident_kib(node)?;
            for number in 0..EVENTS / 2 {
                let name = format!("c{number}");
                let id = node
                    .cri()
                    .create(&pod, shell(&name, "true"), config.clone())?;
                node.cri().remove(&id)?;
            }
            let grown = resident_kib(node)?.saturating_sub(before);
            ensure!(grown < 32 * 1024, "{grown} KiB for a listener that is deaf");
            wait_for("the deaf listener to be cut off", LIMIT, || {
                node.daemon_log().contains("cut off").then_some(())
            })?;
            done.send(()).expect("the deaf listener waits");
            let deaf = deaf.join().expect("the deaf listener does not panic");
            anyhow::Ok(deaf?)
        })?;
        let (heard, end) = deaf;
        ensure!(heard > 0 && heard < EVENTS, "{heard} of {EVENTS}");
        let end = end.context("the stream ended as if nothing were lost")?;
        assert_eq!(end.code(), Code::ResourceExhausted, "{end}");
        Ok(())
    })
}

#[test]
fn lists_come_as_streams_too() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let cri = node.cri();
        let none = cri.runtime(async |mut cri| {
            let request = StreamContainersRequest::default();
            let mut stream = cri.stream_containers(request).await?.into_inner();
            Ok(Response::new(stream.message().await?))
        })?;
        assert_eq!(none, None);

        let pod = node.busybox_pod("streamed")?;
        let running = node.start(&pod, shell("running", "exec sleep 1000"))?;
        for number in 0..120 {
            node.create(&pod, shell(&format!("c{number}"), "true"))?;
        }
        let streamed = cri.runtime(async |mut cri| {
            let request = StreamContainersRequest::default();
            let mut stream = cri.stream_containers(request).await?.into_inner();
            let (mut messages, mut ids) = (0, Vec::new());
            while let Some(message) = stream.message().await? {
                messages += 1;
                ids.extend(message.containers.into_iter().map(|it| it.id));
            }
            Ok(Response::new((messages, ids)))
        })?;
        let listed: Vec<_> = cri.containers(None)?.into_iter().map(|it| it.id).collect();
        assert_eq!(streamed, (2, listed));

        let pods = cri.runtime(async |mut cri| {
            let request = StreamPodSandboxesRequest::default();
            let mut stream = cri.stream_pod_sandboxes(request).await?.into_inner();
            Ok(Response::new(stream.message().await?))
        })?;
        assert_eq!(pods.context("no pods")?.pod_sandboxes, cri.pods(None)?);
        let stats = cri.runtime(async |mut cri| {
            let request = StreamContainerStatsRequest::default();
            let mut stream = cri.stream_container_stats(request).await?.into_inner();
            Ok(Response::new(stream.message().await?))
        })?;
        let stats = stats.context("no statistics")?.container_stats;
        let ids: Vec<_> = stats
            .iter()
            .filter_map(|it| it.attributes.as_ref())
            .collect();
        assert_eq!((ids.len(), ids[0].id.as_str()), (1, running.as_str()));
        let stats = cri.runtime(async |mut cri| {
            let request = StreamPodSandboxStatsRequest::default();
            let mut stream = cri.stream_pod_sandbox_stats(request).await?.into_inner();
            Ok(Response::new(stream.message().await?))
        })?;
        assert_eq!(stats.context("no statistics")?.pod_sandbox_stats.len(), 1);
        Ok(())
    })
}

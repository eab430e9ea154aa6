//! Events, in order, of pods that live and of pods that are killed.

use std::process::Stdio;
use std::sync::mpsc;

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{ContainerEventResponse, ContainerEventType, PodSandboxState};
use isopod_tests::node::{self, Node, Options, shell};
use isopod_tests::process::Child;
use serde_json::Value;

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
    ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
};

/// Listens while `work` is done, up to so many events.
fn heard_during(
    node: &Node,
    count: usize,
    work: impl FnOnce() -> Result<()>,
) -> Result<Vec<ContainerEventResponse>> {
    let (ready, listening) = mpsc::channel();
    std::thread::scope(|scope| {
        let listener = scope.spawn(move || {
            let ready = || ready.send(()).expect("the test waits");
            node.cri().events(ready, |heard| heard.len() == count)
        });
        listening.recv().context("the listener has ended")?;
        work()?;
        Ok(listener.join().expect("the listener does not panic")?)
    })
}

#[test]
fn a_pods_life_is_told_in_order_and_with_its_statuses() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let (mut pod, mut container) = (String::new(), String::new());
        let heard = heard_during(node, 8, || {
            pod = node.busybox_pod("life")?;
            let (status, _) = node.run_script(&pod, "main", "exit 3")?;
            container.clone_from(&status.id);
            node.cri().remove(&status.id)?;
            node.cri().stop_pod(&pod)?;
            Ok(node.cri().remove_pod(&pod)?)
        })?;
        let told: Vec<_> = heard
            .iter()
            .map(|event| (event.container_id.as_str(), event.container_event_type()))
            .collect();
        let (pod, container) = (pod.as_str(), container.as_str());
        assert_eq!(
            told,
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
        let exit = &heard[4].containers_statuses[0];
        assert_eq!((exit.exit_code, exit.reason.as_str()), (3, "Error"));
        let end = heard[6].pod_sandbox_status.as_ref();
        let state = end.context("no status of the pod")?.state();
        assert_eq!(state, PodSandboxState::SandboxNotready);
        Ok(())
    })
}

/// What `crictl events` says in JSON, so many events.
fn from_crictl(node: &Node, count: usize, work: impl FnOnce() -> Result<()>) -> Result<Vec<Value>> {
    let mut command = node.crictl()?.command(&["events", "--output", "json"]);
    let mut crictl = command.stdout(Stdio::piped()).spawn()?;
    let output = crictl.stdout.take().context("crictl's output is a pipe")?;
    let _crictl = Child::new(crictl);
    // It does not say when it listens.
    std::thread::sleep(std::time::Duration::from_secs(5));
    work()?;
    let events = serde_json::Deserializer::from_reader(output).into_iter();
    Ok(events.take(count).collect::<Result<_, _>>()?)
}

#[test]
fn a_killed_machine_stops_its_containers_and_crictl_hears_of_it() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("victim")?;
        let container = node.start(&pod, shell("main", "sleep 10000"))?;
        let mut all = Vec::new();
        let lines = from_crictl(node, 2, || {
            all = heard_during(node, 2, || {
                node.vmm(&pod)?.kill();
                node.wait_exited(&container)?;
                Ok(())
            })?;
            Ok(())
        })?;
        for event in &all {
            assert_eq!(event.container_event_type(), Stopped);
        }
        let ended = all.iter().find(|event| event.container_id == container);
        let status = &ended
            .context("no event of the container")?
            .containers_statuses[0];
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        ensure!(all.iter().any(|event| event.container_id == pod));
        for line in &lines {
            assert_eq!(
                line["containerEventType"], "CONTAINER_STOPPED_EVENT",
                "{line}"
            );
        }
        Ok(())
    })
}

//! Names, identifiers and filters, on a VMM that boots nothing.

mod fake;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::{
    ContainerFilter, ContainerState, ContainerStateValue, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue,
};
use isopod_tests::node::{Node, pod_config, shell};
use tonic::Code;

use self::fake::{START_TIMEOUT_MS, on_fake};

/// Pods of the crowded node.
const PODS: usize = 4;
/// Containers of each of them.
const CONTAINERS_PER_POD: usize = 250;
/// How many values the containers' label has.
const TIERS: usize = 10;

#[test]
fn names_ids_and_filters_follow_the_cri() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let cri = node.cri();
        let pod = node.busybox_pod("first")?;
        let other = cri.run_pod(pod_config(node, "second"))?;
        let error = cri.run_pod(pod_config(node, "first")).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        let id = node.create(&pod, shell("main", "true"))?;
        let error = node.create(&pod, shell("main", "true")).unwrap_err();
        assert_eq!(
            error.downcast::<tonic::Status>()?.code(),
            Code::AlreadyExists
        );
        // Another sandbox may have a container of that name; beginnings of ids are enough.
        node.create(&other[..12], shell("main", "true"))?;
        assert_eq!(cri.container_status(&id[..12])?.id, id);
        for error in [
            cri.container_status("0123").unwrap_err(),
            cri.pod_status("0123").unwrap_err(),
            cri.start("0123").unwrap_err(),
        ] {
            assert_eq!(error.code(), Code::NotFound, "{error}");
        }
        let of_pod = ContainerFilter {
            pod_sandbox_id: pod.clone(),
            ..Default::default()
        };
        let found = cri.containers(Some(of_pod))?;
        assert_eq!(
            found.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(),
            [id.as_str()]
        );
        cri.stop_pod(&other)?;
        let ready = PodSandboxStateValue {
            state: PodSandboxState::SandboxReady.into(),
        };
        let ready = PodSandboxFilter {
            state: Some(ready),
            ..Default::default()
        };
        let found = cri.pods(Some(ready))?;
        assert_eq!(
            found.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(),
            [pod.as_str()]
        );
        let error = cri
            .run_pod_with("runc", pod_config(node, "third"))
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("\"isopod\""), "{error}");
        Ok(())
    })
}

/// The containers of a crowded pod, the first of each tier running.
fn crowd(node: &Node, pod: &str) -> Result<Vec<String>> {
    let mut ids = Vec::with_capacity(CONTAINERS_PER_POD);
    for number in 0..CONTAINERS_PER_POD {
        let mut config = shell(&format!("c{number}"), "exec sleep 1000");
        let label = ("tier".to_owned(), (number % TIERS).to_string());
        config.labels.extend([label]);
        let id = node.create(pod, config)?;
        if number < TIERS {
            node.cri().start(&id)?;
        }
        ids.push(id);
    }
    Ok(ids)
}

fn listed(node: &Node, filter: ContainerFilter) -> Result<BTreeSet<String>> {
    let found = node.cri().containers(Some(filter))?;
    let (count, ids) = (
        found.len(),
        found.into_iter().map(|one| one.id).collect::<BTreeSet<_>>(),
    );
    ensure!(ids.len() == count, "a container is listed twice");
    Ok(ids)
}

fn in_tier(tier: usize) -> ContainerFilter {
    ContainerFilter {
        label_selector: [("tier".to_owned(), tier.to_string())].into(),
        ..Default::default()
    }
}

/// Every filter finds what it names, and nothing else.
fn check_filters(node: &Node, pods: &[(String, Vec<String>)]) -> Result<()> {
    let all: BTreeSet<_> = pods.iter().flat_map(|(_, ids)| ids.clone()).collect();
    assert_eq!(all.len(), PODS * CONTAINERS_PER_POD);
    ensure!(
        listed(node, ContainerFilter::default())? == all,
        "no filter"
    );
    let running = ContainerStateValue {
        state: ContainerState::ContainerRunning.into(),
    };
    for (pod, ids) in pods {
        let of_pod = ContainerFilter {
            pod_sandbox_id: pod.clone(),
            ..Default::default()
        };
        ensure!(
            listed(node, of_pod.clone())? == ids.iter().cloned().collect(),
            "{pod}"
        );
        let state = Some(running);
        let filter = ContainerFilter { state, ..of_pod };
        ensure!(
            listed(node, filter)? == ids[..TIERS].iter().cloned().collect(),
            "running"
        );
    }
    for tier in 0..TIERS {
        let of_tier = |ids: &Vec<String>| {
            ids.iter()
                .skip(tier)
                .step_by(TIERS)
                .cloned()
                .collect::<Vec<_>>()
        };
        let expected = pods.iter().flat_map(|(_, ids)| of_tier(ids)).collect();
        ensure!(listed(node, in_tier(tier))? == expected, "tier {tier}");
        let (pod, ids) = &pods[tier % PODS];
        let filter = ContainerFilter {
            pod_sandbox_id: pod.clone(),
            id: ids[tier].clone(),
            ..in_tier(tier)
        };
        ensure!(
            listed(node, filter)? == [ids[tier].clone()].into(),
            "one of tier {tier}"
        );
        let other = ContainerFilter {
            id: ids[tier].clone(),
            ..in_tier(tier + 1)
        };
        ensure!(listed(node, other)?.is_empty(), "another tier's");
    }
    Ok(())
}

#[test]
fn a_thousand_containers_are_listed_by_filters_and_found_by_the_next_daemon() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pods = ["a", "b", "c", "d"].map(|name| node.busybox_pod(name));
        let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
        let pods = std::thread::scope(|scope| {
            let crowds = pods.into_iter().map(|pod| {
                scope.spawn(move || {
                    let ids = crowd(node, &pod)?;
                    Ok((pod, ids))
                })
            });
            let crowds: Vec<_> = crowds.collect();
            let joined = crowds
                .into_iter()
                .map(|crowd| crowd.join().expect("no panic"));
            joined.collect::<Result<Vec<_>>>()
        })?;
        assert_eq!(pods.len(), PODS);
        check_filters(node, &pods)?;
        node.kill_daemon();
        node.start_daemon()?;
        check_filters(node, &pods).context("after a restart")?;
        for (pod, _) in &pods {
            node.cri().stop_pod(pod)?;
            node.cri().remove_pod(pod)?;
        }
        let left = node.cri().containers(None)?.len();
        ensure!(left == 0, "{left} containers of no pod");
        Ok(())
    })
}

//! From create to delete.

use isopod_proto::agent::{ContainerState, ListContainersRequest};
use ttrpc::Code;

use crate::harness::{context, spec, status, with_agent};

#[test]
fn a_container_runs_and_tells_its_exit_code() {
    with_agent(|agent| async move {
        let script = spec(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
        let (code, output) = agent.outcome("c1", &script).await;
        assert_eq!(code, 7);
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str()),
            ("out\n", "err\n")
        );
    });
}

#[test]
fn a_process_that_a_signal_killed_exits_with_128_and_its_number() {
    with_agent(|agent| async move {
        agent.run("c1", "sleep 1000").await;
        agent.signal("c1", "", libc::SIGKILL, false).await;
        assert_eq!(agent.wait("c1", "").await.unwrap().exit_code, 137);
        // Nothing is left to signal, which is fine.
        agent.signal("c1", "", libc::SIGTERM, false).await;
        agent.signal("c1", "", libc::SIGTERM, true).await;
        agent.delete("c1").await.unwrap();
    });
}

#[test]
fn a_real_time_signal_is_delivered_and_told() {
    with_agent(|agent| async move {
        let mut spec = spec(&["sleep", "1000"]);
        // Not PID 1, which the kernel shields from signals without a handler.
        spec["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}]);
        agent.create("c1", &spec).await.unwrap();
        agent.start_container("c1").await.unwrap();
        agent.signal("c1", "", 37, false).await;
        assert_eq!(agent.wait("c1", "").await.unwrap().exit_code, 128 + 37);
    });
}

#[test]
fn states_are_listed_through_a_containers_life() {
    with_agent(|agent| async move {
        let states = async || {
            let request = ListContainersRequest::new();
            let list = agent
                .client
                .list_containers(context(), &request)
                .await
                .unwrap();
            list.containers
                .iter()
                .map(|info| info.state.unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(states().await, []);
        agent.create("c1", &spec(&["sleep", "1000"])).await.unwrap();
        assert_eq!(states().await, [ContainerState::CONTAINER_STATE_CREATED]);
        agent.start_container("c1").await.unwrap();
        assert_eq!(states().await, [ContainerState::CONTAINER_STATE_RUNNING]);
        agent.signal("c1", "", libc::SIGKILL, false).await;
        agent.wait("c1", "").await.unwrap();
        assert_eq!(states().await, [ContainerState::CONTAINER_STATE_EXITED]);
        agent.delete("c1").await.unwrap();
        assert_eq!(states().await, []);
    });
}

#[test]
fn verbs_out_of_order_are_refused() {
    with_agent(|agent| async move {
        assert_eq!(status(agent.start_container("c1").await).0, Code::NOT_FOUND);
        agent.create("c1", &spec(&["sleep", "1000"])).await.unwrap();
        assert_eq!(
            status(agent.create("c1", &spec(&["true"])).await).0,
            Code::ALREADY_EXISTS
        );
        assert_eq!(
            status(agent.exec("c1", "e1", &["true"]).await).0,
            Code::FAILED_PRECONDITION
        );
        agent.start_container("c1").await.unwrap();
        assert_eq!(
            status(agent.start_container("c1").await).0,
            Code::FAILED_PRECONDITION
        );
        // The disk has one user.
        let other = agent.create("c2", &spec(&["true"])).await;
        assert_eq!(status(other).0, Code::FAILED_PRECONDITION);
        agent.delete("c1").await.unwrap();
        agent.delete("c1").await.unwrap();
        assert_eq!(status(agent.wait("c1", "").await).0, Code::NOT_FOUND);
    });
}

#[test]
fn a_wait_from_before_the_start_is_answered_at_the_end() {
    with_agent(|agent| async move {
        agent
            .create("c1", &spec(&["sh", "-c", "exit 3"]))
            .await
            .unwrap();
        let waiting = agent.wait("c1", "");
        let (waited, started) = tokio::join!(waiting, agent.start_container("c1"));
        started.unwrap();
        let exit = waited.unwrap();
        assert_eq!(exit.exit_code, 3);
        assert!(exit.exited_at_ns > 1_600_000_000_000_000_000);
        assert!(!exit.oom_killed);
    });
}

#[test]
fn what_a_container_writes_is_gone_with_it() {
    with_agent(|agent| async move {
        let write = spec(&["sh", "-c", "echo x > /etc/new && rm /etc/group && ls /etc"]);
        let (code, output) = agent.outcome("c1", &write).await;
        assert_eq!((code, output.stdout.contains("new")), (0, true));
        let (_, output) = agent.outcome("c1", &spec(&["ls", "/etc"])).await;
        assert_eq!(
            output.stdout,
            "group\nhostname\nhosts\npasswd\nresolv.conf\n"
        );
    });
}

#[test]
fn a_created_container_that_was_never_started_is_deleted() {
    with_agent(|agent| async move {
        let before = agent.settled_possessions().await;
        agent.create("c1", &spec(&["true"])).await.unwrap();
        agent.delete("c1").await.unwrap();
        agent.assert_possessions(&before, "afterwards").await;
    });
}

#[test]
fn creating_and_deleting_again_and_again_leaves_nothing() {
    let cycles: u32 = std::env::var("ISOPOD_CYCLES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(25);
    with_agent(|agent| async move {
        // What the first container brings for good (a thread pool, a cgroup parent) is not a leak.
        agent.outcome("c0", &spec(&["true"])).await;
        let before = agent.settled_possessions().await;
        for cycle in 0..cycles {
            let id = format!("c{cycle}");
            agent.run(&id, "sleep 1000 & sleep 1000").await;
            agent.exec(&id, "e1", &["true"]).await.unwrap();
            agent.wait(&id, "e1").await.unwrap();
            agent.delete(&id).await.unwrap();
        }
        agent.assert_possessions(&before, "afterwards").await;
    });
}

#[test]
fn a_verb_goes_on_without_its_caller() {
    with_agent(|agent| async move {
        let client = agent.reconnect().await;
        let request = crate::harness::request("c1", &spec(&["true"]));
        let call = client.create_container(context(), &request);
        // The caller is gone before the answer.
        let gone = tokio::time::timeout(std::time::Duration::from_millis(2), call).await;
        drop(client);
        if gone.is_err() {
            // Deleting waits for the create to end, and finds it whole or undone.
            agent.delete("c1").await.unwrap();
        }
        agent.delete("c1").await.unwrap();
        let (code, _) = agent.outcome("c1", &spec(&["true"])).await;
        assert_eq!(code, 0);
    });
}

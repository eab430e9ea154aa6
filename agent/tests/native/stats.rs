//! What is told of containers that run, have ended, and are gone. Memory and limits need controllers
//! in the unified hierarchy: the end-to-end tests look at those.

use isopod_proto::agent::{StatsRequest, StatsResponse};
use ttrpc::Code;

use crate::harness::{Agent, context, status, with_agent};

async fn stats(agent: &Agent, id: &str) -> ttrpc::Result<StatsResponse> {
    let request = StatsRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    agent.client.stats(context(), &request).await
}

#[test]
fn running_container_tells_its_time_its_processes_and_what_it_wrote() {
    with_agent(async |agent| {
        let script = "dd if=/dev/zero of=/big bs=1024 count=2048 2>/dev/null; echo ready; \
                      sleep 1000 & sleep 1000 & wait";
        agent.run("busy", script).await;
        let mut log = agent
            .open(
                "busy",
                "",
                isopod_proto::agent::StreamRole::STREAM_ROLE_PRIMARY,
            )
            .await;
        log.receive().await.unwrap();
        let told = loop {
            let told = stats(&agent, "").await.unwrap();
            // A fork is a moment behind the words before it.
            if told.sandbox.processes == 3 {
                break told;
            }
        };
        assert_eq!(told.containers.len(), 1);
        let container = &told.containers[0];
        assert_eq!(container.container_id, "busy");
        assert_eq!(container.cgroup.processes, 3);
        assert!(container.cgroup.cpu.usage_us > 0);
        assert!(container.cgroup.cpu.usage_us <= told.sandbox.cpu.usage_us);
        assert!(container.writable_layer.bytes >= 2 << 20);
        assert!(container.writable_layer.inodes >= 2);
        assert!(told.interfaces.is_empty(), "loopback is nobody's business");
        let later = stats(&agent, "busy").await.unwrap();
        assert!(later.at_ns > told.at_ns);
        agent.delete("busy").await.unwrap();
    });
}

#[test]
fn container_that_is_gone_is_not_found_and_one_that_ended_is_in_no_list() {
    with_agent(async |agent| {
        agent.run("short", "true").await;
        agent.wait("short", "").await.unwrap();
        let all = stats(&agent, "").await.unwrap();
        assert!(all.containers.is_empty());
        let one = stats(&agent, "short").await.unwrap();
        assert_eq!(one.containers.len(), 1, "asked for by name");
        agent.delete("short").await.unwrap();
        let (code, message) = status(stats(&agent, "short").await);
        assert_eq!(code, Code::NOT_FOUND, "{message}");
    });
}

//! What containers of a sandbox share, and what they do not.

use isopod_proto::agent::{CreateContainerRequest, PowerOffRequest};

use crate::harness::{Agent, context, request, spec, with_agent};

fn on_disk(id: &str, disk: &str, script: &str) -> CreateContainerRequest {
    let mut request = request(id, &spec(&["sh", "-c", script]));
    request.rootfs.mut_or_insert_default().disk_serial = disk.to_owned();
    request
}

async fn start(agent: &Agent, request: CreateContainerRequest) {
    let id = request.container_id.clone();
    agent.create_with(request).await.unwrap();
    agent.start_container(&id).await.unwrap();
}

#[test]
fn a_container_is_alone_in_its_pid_namespace_and_has_the_pods_name() {
    with_agent(|agent| async move {
        start(&agent, on_disk("c1", "busybox1", "sleep 1000")).await;
        let script = "hostname; cat /etc/hostname; grep -c test-pod /etc/hosts; ps -o comm";
        start(&agent, on_disk("c2", "busybox2", script)).await;
        let output = agent.output("c2", "").await.stdout;
        assert_eq!(output, "test-pod\ntest-pod\n1\nCOMMAND\nps\n");
    });
}

#[test]
fn containers_share_a_pid_namespace_whose_holder_gives_nothing_away() {
    with_agent(|agent| async move {
        let shared = |id: &str, disk: &str, script: &str| {
            let mut request = on_disk(id, disk, script);
            request.sandbox_pid_namespace = true;
            request
        };
        start(&agent, shared("c1", "busybox1", "exec sleep 1234")).await;
        // An orphan ends up with the holder, which collects it.
        let script = "ps -o pid,user,args; ls /proc/1/root/ 2>&1; \
                      grep -E '^(Uid|Cap(Eff|Prm|Bnd|Inh)|NoNewPrivs)' /proc/1/status; \
                      (sleep 0.1 &); sleep 0.5; ps -o stat,args | grep -c '^Z'";
        start(&agent, shared("c2", "busybox2", script)).await;
        let output = agent.output("c2", "").await.stdout;
        assert!(output.contains("sleep 1234"), "{output}");
        assert!(output.contains("65534    pause\n"), "{output}");
        assert!(output.contains("Permission denied"), "{output}");
        assert!(output.contains("Uid:\t65534"), "{output}");
        assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
        assert!(output.contains("NoNewPrivs:\t1"), "{output}");
        assert!(output.ends_with("\n0\n"), "{output}");
        // The namespace outlives its containers.
        agent.delete("c1").await.unwrap();
        agent.delete("c2").await.unwrap();
        start(&agent, shared("c3", "busybox3", "ps -o args")).await;
        assert!(agent.output("c3", "").await.stdout.contains("pause"));
    });
}

#[test]
fn what_an_init_leaves_in_a_shared_pid_namespace_is_killed_with_it() {
    with_agent(|agent| async move {
        let mut request = on_disk("c1", "busybox1", "sleep 2000 & exit 0");
        request.sandbox_pid_namespace = true;
        start(&agent, request).await;
        agent.wait("c1", "").await.unwrap();
        let mut request = on_disk("c2", "busybox2", "ps -o args | grep -c '^sleep 2000'");
        request.sandbox_pid_namespace = true;
        start(&agent, request).await;
        assert_eq!(agent.output("c2", "").await.stdout, "0\n");
    });
}

#[test]
fn a_container_joins_the_pid_namespace_of_its_target() {
    with_agent(|agent| async move {
        start(&agent, on_disk("c1", "busybox1", "exec sleep 1234")).await;
        let mut request = on_disk("c2", "busybox2", "ps -o pid,args | grep 'sleep 1234$'");
        request.target_container_id = "c1".to_owned();
        start(&agent, request).await;
        assert!(agent.output("c2", "").await.stdout.contains("1 sleep 1234"));
        // Its end is not the target's.
        agent.wait("c2", "").await.unwrap();
        agent.exec("c1", "e1", &["true"]).await.unwrap();
    });
}

#[test]
fn power_off_ends_everything() {
    with_agent(|mut agent| async move {
        start(
            &agent,
            on_disk("c1", "busybox1", "trap '' TERM; sleep 1000"),
        )
        .await;
        let mut request = on_disk("c2", "busybox2", "sleep 1000");
        request.sandbox_pid_namespace = true;
        start(&agent, request).await;
        // The reply may never arrive.
        let _ = agent
            .client
            .power_off(context(), &PowerOffRequest::new())
            .await;
        assert!(agent.ended().await.success());
    });
}

//! What a container's processes may not do.

use serde_json::json;

use crate::harness::{Agent, request, spec, with_agent};

/// Denies one system call that busybox can be made to use.
fn filter() -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
        ]
    })
}

const PROBE: &str = "grep -E '^(Seccomp|CapEff|CapBnd|CapPrm|NoNewPrivs):' /proc/self/status; \
                     mkdir /tmp/x 2>&1";

async fn exec(agent: &Agent, id: &str) -> String {
    agent.exec("c1", id, &["sh", "-c", PROBE]).await.unwrap();
    agent.output("c1", id).await.stdout
}

#[test]
fn a_system_call_filter_holds_in_the_container_and_in_its_execs() {
    with_agent(|agent| async move {
        for (round, no_new_privs) in [false, true].into_iter().enumerate() {
            let mut spec = spec(&["sh", "-c", &format!("{PROBE}; echo --; sleep 1000")]);
            spec["linux"]["seccomp"] = filter();
            spec["process"]["noNewPrivileges"] = json!(no_new_privs);
            agent.create_with(request("c1", &spec)).await.unwrap();
            agent.start_container("c1").await.unwrap();
            let role = isopod_proto::agent::StreamRole::STREAM_ROLE_PRIMARY;
            let init = agent.open("c1", "", role).await.until("--").await;
            let exec = exec(&agent, &format!("e{round}")).await;
            for output in [init, exec] {
                assert!(output.contains("Seccomp:\t2"), "{output}");
                assert!(output.contains("Function not implemented"), "{output}");
                let privs = format!("NoNewPrivs:\t{}", u8::from(no_new_privs));
                assert!(output.contains(&privs), "{output}");
                // CHOWN, KILL, SETGID, SETUID and MKNOD: nothing that the filter took is kept.
                for set in ["CapEff", "CapPrm", "CapBnd"] {
                    assert!(
                        output.contains(&format!("{set}:\t00000000080000e1")),
                        "{output}"
                    );
                }
            }
            agent.delete("c1").await.unwrap();
        }
    });
}

#[test]
fn a_process_starts_with_plain_signals_and_descriptors() {
    with_agent(|agent| async move {
        let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l";
        let (_, output) = agent.outcome("c1", &spec(&["sh", "-c", script])).await;
        // 0, 1, 2, and the one that ls reads the folder with.
        let wanted = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n4\n";
        assert_eq!(output.stdout, wanted);
        agent.run("c2", "sleep 1000").await;
        agent.exec("c2", "e1", &["sh", "-c", script]).await.unwrap();
        assert_eq!(agent.output("c2", "e1").await.stdout, wanted);
    });
}

#[test]
fn a_read_only_container_cannot_write_and_can_be_mounted_into() {
    with_agent(|agent| async move {
        let script = "echo x > /etc/x; cat /etc/hostname; mkdir /y; echo x > /etc/hosts";
        let mut request = request("c1", &spec(&["sh", "-c", script]));
        request.rootfs.mut_or_insert_default().read_only = true;
        agent.create_with(request).await.unwrap();
        agent.start_container("c1").await.unwrap();
        let output = agent.output("c1", "").await;
        assert_eq!(output.stdout, "test-pod\n");
        assert_eq!(
            output.stderr.matches("Read-only file system").count(),
            3,
            "{}",
            output.stderr
        );
    });
}

#[test]
fn an_unprivileged_user_may_open_its_own_output_again() {
    with_agent(|agent| async move {
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; id -un";
        let mut request = request("c1", &spec(&["sh", "-c", script]));
        request.user.mut_or_insert_default().name = "web".to_owned();
        agent.create_with(request).await.unwrap();
        agent.start_container("c1").await.unwrap();
        let output = agent.output("c1", "").await;
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str()),
            ("out\nweb\n", "err\n")
        );
    });
}

#[test]
fn masked_and_read_only_paths_are() {
    with_agent(|agent| async move {
        let script = "wc -c < /proc/keys; echo x > /proc/sys/kernel/hostname";
        let (_, output) = agent.outcome("c1", &spec(&["sh", "-c", script])).await;
        assert_eq!(output.stdout, "0\n");
        assert!(
            output.stderr.contains("Read-only file system"),
            "{}",
            output.stderr
        );
    });
}

#[test]
fn a_device_that_is_not_allowed_cannot_be_opened_even_through_a_node_of_ones_own() {
    with_agent(|agent| async move {
        let script = "mknod /tmp/mem c 1 1 && mknod /tmp/null c 1 3 && mknod /tmp/full c 1 7; \
                      for name in mem null full; do head -c 1 /tmp/$name | wc -c; done";
        let probe = spec(&["sh", "-c", script]);
        let (_, output) = agent.outcome("c1", &probe).await;
        assert_eq!(output.stdout, "0\n0\n1\n");
        assert_eq!(output.stderr, "head: /tmp/mem: Operation not permitted\n");
        // The same for an exec, and not for a privileged container.
        agent.run("c2", "sleep 1000").await;
        agent.exec("c2", "e1", &["sh", "-c", script]).await.unwrap();
        assert_eq!(agent.output("c2", "e1").await.stdout, "0\n0\n1\n");
        agent.delete("c2").await.unwrap();
        let mut privileged = probe;
        privileged["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
        let (_, output) = agent.outcome("c3", &privileged).await;
        assert!(
            !output.stderr.contains("not permitted"),
            "{}",
            output.stderr
        );
    });
}

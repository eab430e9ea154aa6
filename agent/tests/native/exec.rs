//! More processes in a running container.

use isopod_proto::agent::{DeleteProcessRequest, User};
use protobuf::MessageField;
use ttrpc::Code;

use crate::harness::{Agent, context, request, spec, status, with_agent};

async fn delete(agent: &Agent, exec_id: &str) -> ttrpc::Result<()> {
    let request = DeleteProcessRequest {
        container_id: "c1".to_owned(),
        exec_id: exec_id.to_owned(),
        ..Default::default()
    };
    agent
        .client
        .delete_process(context(), &request)
        .await
        .map(drop)
}

#[test]
fn an_exec_shares_the_containers_world_and_has_its_own_exit_code() {
    with_agent(|agent| async move {
        agent.run("c1", "echo here > /tmp/file; sleep 1000").await;
        let script = "until cat /tmp/file; do sleep 0.01; done 2>/dev/null; \
                      echo $HOME $PATH; pwd; cat /proc/1/comm; exit 5";
        agent.exec("c1", "e1", &["sh", "-c", script]).await.unwrap();
        let output = agent.output("c1", "e1").await;
        assert_eq!(output.stdout, "here\n/root /usr/bin:/bin\n/\nsleep\n");
        assert_eq!(agent.wait("c1", "e1").await.unwrap().exit_code, 5);
        delete(&agent, "e1").await.unwrap();
        delete(&agent, "e1").await.unwrap();
        assert_eq!(status(agent.wait("c1", "e1").await).0, Code::NOT_FOUND);
    });
}

#[test]
fn an_exec_runs_as_the_containers_user() {
    with_agent(|agent| async move {
        let mut request = request("c1", &spec(&["sleep", "1000"]));
        request.user = MessageField::some(User {
            name: "web".to_owned(),
            supplemental_groups: vec![4000],
            ..Default::default()
        });
        let created = agent.create_with(request).await.unwrap();
        assert_eq!((created.uid, created.gid), (1000, 1001));
        assert_eq!(created.supplemental_groups, [1001, 1002, 4000]);
        agent.start_container("c1").await.unwrap();
        agent
            .exec("c1", "e1", &["sh", "-c", "id -u; id -g; id -G; echo $HOME"])
            .await
            .unwrap();
        let output = agent.output("c1", "e1").await;
        assert_eq!(output.stdout, "1000\n1001\n1001 1002 4000\n/home/web\n");
    });
}

#[test]
fn killing_all_of_an_exec_leaves_the_container_and_other_execs() {
    with_agent(|agent| async move {
        agent.run("c1", "sleep 1000").await;
        // A tree whose middle is gone, and which left its session.
        let tree = "setsid sh -c 'sleep 2000 & sleep 2000' & sleep 2000";
        agent.exec("c1", "e1", &["sh", "-c", tree]).await.unwrap();
        agent.exec("c1", "e2", &["sleep", "3000"]).await.unwrap();
        let count = async |id: &str, name: &str| {
            let script = format!("ps -o args | grep -c '^sleep {name}'");
            agent.exec("c1", id, &["sh", "-c", &script]).await.unwrap();
            agent
                .output("c1", id)
                .await
                .stdout
                .trim()
                .parse::<u32>()
                .unwrap()
        };
        while count("before", "2000").await < 3 {
            agent.wait("c1", "before").await.unwrap();
            delete(&agent, "before").await.unwrap();
        }
        assert_eq!(
            status(delete(&agent, "e1").await).0,
            Code::FAILED_PRECONDITION
        );
        agent.signal("c1", "e1", libc::SIGKILL, true).await;
        assert_eq!(agent.wait("c1", "e1").await.unwrap().exit_code, 137);
        // The others may take a moment longer than the one that is waited for.
        while count("after1", "2000").await > 0 {
            agent.wait("c1", "after1").await.unwrap();
            delete(&agent, "after1").await.unwrap();
        }
        assert_eq!(count("after2", "3000").await, 1);
        assert_eq!(count("after3", "1000").await, 1);
        delete(&agent, "e1").await.unwrap();
    });
}

#[test]
fn a_command_that_is_not_there_is_not_found_and_its_id_is_free_again() {
    with_agent(|agent| async move {
        agent.run("c1", "sleep 1000").await;
        let before = agent.settled_possessions().await;
        let missing = agent.exec("c1", "e1", &["no-such-command"]).await;
        let text = r#"exec: "no-such-command": executable file not found in $PATH"#;
        assert_eq!(status(missing), (Code::NOT_FOUND, text.to_owned()));
        let text = r#"exec: "/etc/passwd": permission denied"#;
        let denied = agent.exec("c1", "e1", &["/etc/passwd"]).await;
        assert_eq!(status(denied), (Code::INVALID_ARGUMENT, text.to_owned()));
        agent.assert_possessions(&before, "afterwards").await;
        agent.exec("c1", "e1", &["true"]).await.unwrap();
        assert_eq!(
            status(agent.exec("c1", "e1", &["true"]).await).0,
            Code::ALREADY_EXISTS
        );
    });
}

#[test]
fn execs_run_side_by_side_and_end_with_the_container() {
    with_agent(|agent| async move {
        agent.run("c1", "sleep 1000").await;
        let ids: Vec<String> = (0..8).map(|number| format!("e{number}")).collect();
        for id in &ids {
            agent.exec("c1", id, &["sleep", "1000"]).await.unwrap();
        }
        agent.signal("c1", "", libc::SIGKILL, false).await;
        assert_eq!(agent.wait("c1", "").await.unwrap().exit_code, 137);
        for id in &ids {
            assert_eq!(agent.wait("c1", id).await.unwrap().exit_code, 137);
        }
        assert_eq!(
            status(agent.exec("c1", "late", &["true"]).await).0,
            Code::FAILED_PRECONDITION
        );
    });
}

#[test]
fn an_exec_that_has_exited_at_once_is_not_missed() {
    with_agent(|agent| async move {
        agent.run("c1", "sleep 1000").await;
        for round in 0..30 {
            let id = format!("e{round}");
            agent.exec("c1", &id, &["true"]).await.unwrap();
            assert_eq!(agent.wait("c1", &id).await.unwrap().exit_code, 0);
            delete(&agent, &id).await.unwrap();
        }
    });
}

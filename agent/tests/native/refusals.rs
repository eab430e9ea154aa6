//! Bad input: a clear answer, and nothing left behind.

use std::fs;

use isopod_proto::agent::{HelloRequest, SetUpSandboxRequest, User};
use protobuf::MessageField;
use serde_json::json;
use ttrpc::Code;

use crate::harness::{context, request, spec, status, with_agent};

#[test]
fn another_protocol_version_is_refused_with_both_numbers() {
    with_agent(|agent| async move {
        let hello = HelloRequest {
            protocol_version: 99,
            ..Default::default()
        };
        let (code, text) = status(agent.client.hello(context(), &hello).await);
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert!(
            text.contains("version 1") && text.contains("version 99"),
            "{text}"
        );
    });
}

#[test]
fn a_sandbox_is_set_up_once() {
    with_agent(|agent| async move {
        let again = SetUpSandboxRequest {
            scratch_serial: "scratch".to_owned(),
            ..Default::default()
        };
        let result = agent.client.set_up_sandbox(context(), &again).await;
        assert_eq!(status(result).0, Code::ALREADY_EXISTS);
    });
}

#[test]
fn a_container_that_cannot_be_created_leaves_nothing() {
    with_agent(|agent| async move {
        agent.outcome("c0", &spec(&["true"])).await;
        let before = agent.settled_possessions().await;
        let with = |change: fn(&mut serde_json::Value)| {
            let mut spec = spec(&["true"]);
            change(&mut spec);
            request("c1", &spec)
        };
        let mut no_disk = with(|_| {});
        no_disk.rootfs.mut_or_insert_default().disk_serial = "missing".to_owned();
        let mut bad_disk = with(|_| {});
        bad_disk.rootfs.mut_or_insert_default().disk_serial = "garbage".to_owned();
        fs::write(agent.disks().join("garbage"), "no file system").unwrap();
        let mut no_user = with(|_| {});
        no_user.user = MessageField::some(User {
            name: "nobody".to_owned(),
            ..Default::default()
        });
        let mut no_spec = with(|_| {});
        no_spec.spec = b"{".to_vec();
        let mut bad_id = with(|_| {});
        bad_id.container_id = "../c1".to_owned();
        let mut bad_target = with(|_| {});
        bad_target.target_container_id = "c9".to_owned();

        for (request, code, words) in [
            (no_disk, Code::NOT_FOUND, "disk missing not found"),
            (bad_disk, Code::INTERNAL, "mounting the image's disk"),
            (
                no_user,
                Code::INVALID_ARGUMENT,
                "unable to find user nobody",
            ),
            (no_spec, Code::INVALID_ARGUMENT, "not an OCI runtime spec"),
            (bad_id, Code::INVALID_ARGUMENT, "container id"),
            (bad_target, Code::NOT_FOUND, "container c9 does not exist"),
            (
                with(|spec| spec["mounts"][0]["type"] = json!("nonsense")),
                Code::INVALID_ARGUMENT,
                "ENODEV",
            ),
            (
                with(|spec| spec["process"]["cwd"] = json!("/no/such/folder/\u{0}")),
                Code::INVALID_ARGUMENT,
                "",
            ),
        ] {
            let (got, text) = status(agent.create_with(request).await);
            assert_eq!(got, code, "{text}");
            assert!(text.contains(words), "{text}");
            agent.assert_possessions(&before, &text).await;
        }
        agent.outcome("c1", &spec(&["true"])).await;
    });
}

#[test]
fn a_command_that_is_not_there_is_told_at_start() {
    with_agent(|agent| async move {
        agent
            .create("c1", &spec(&["no-such-command", "x"]))
            .await
            .unwrap();
        let text = r#"exec: "no-such-command": executable file not found in $PATH"#;
        assert_eq!(
            status(agent.start_container("c1").await),
            (Code::NOT_FOUND, text.to_owned())
        );
        assert_ne!(agent.wait("c1", "").await.unwrap().exit_code, 0);
        agent.delete("c1").await.unwrap();

        agent.create("c2", &spec(&["/etc/passwd"])).await.unwrap();
        let (code, text) = status(agent.start_container("c2").await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert_eq!(text, r#"exec: "/etc/passwd": permission denied"#);
        agent.delete("c2").await.unwrap();
    });
}

#[test]
fn a_file_that_is_no_program_is_told_at_start() {
    with_agent(|agent| async move {
        let path = agent.disks().join("busybox/bin/not-a-program");
        fs::write(&path, "text\n").unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        agent.create("c1", &spec(&["not-a-program"])).await.unwrap();
        let (code, text) = status(agent.start_container("c1").await);
        assert_eq!(code, Code::INVALID_ARGUMENT);
        assert_eq!(text, "exec /bin/not-a-program: exec format error");
    });
}

#[test]
fn a_stream_of_garbage_does_not_disturb_the_agent() {
    use tokio::io::AsyncWriteExt;
    with_agent(|agent| async move {
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0, 255, 255, 255, 255],
            &[0, 0, 0, 0, 1, 9],
        ] {
            let mut socket = agent.raw_stream().await;
            socket.write_all(garbage).await.unwrap();
            socket.shutdown().await.unwrap();
        }
        let (code, _) = agent.outcome("c1", &spec(&["true"])).await;
        assert_eq!(code, 0);
    });
}

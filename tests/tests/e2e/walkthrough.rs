//! A pod's whole life through crictl, as a person types it.

use anyhow::Result;
use isopod_tests::images::nginx::PAGE;
use isopod_tests::node::{self, Node, Options, image};
use serde_json::{Value, json};

fn sandbox(node: &Node, name: &str) -> Value {
    json!({
        "metadata": { "name": name, "uid": format!("uid-{name}"), "namespace": "default", "attempt": 1 },
        "hostname": "web",
        "log_directory": node.log_directory(name),
        "labels": { "app": "web" },
        "annotations": { "note": "by crictl" },
        "linux": {},
    })
}

fn container(name: &str, image_name: &str, command: &[&str]) -> Value {
    json!({
        "metadata": { "name": name },
        "image": { "image": image(image_name) },
        "command": command,
        "log_path": format!("{name}.log"),
        "labels": { "part": name },
        "linux": {},
    })
}

#[test]
fn crictl_runs_nginx_from_pull_to_removal() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let crictl = node.crictl()?;
        crictl.run(&["pull", &image("nginx")])?;
        assert!(crictl.run(&["images"])?.contains("registry.test/nginx"));

        let pod_file = crictl.file("sandbox.json", &sandbox(node, "web"))?;
        let pod = crictl.id(&["runp", "--runtime", "isopod", &pod_file])?;
        let status = crictl.json(&["inspectp", &pod])?;
        assert_eq!(status["status"]["state"], "SANDBOX_READY");
        assert_eq!(status["status"]["metadata"]["name"], "web");
        assert_eq!(status["status"]["labels"]["app"], "web");
        assert_eq!(status["status"]["annotations"]["note"], "by crictl");
        assert_eq!(status["status"]["runtimeHandler"], "isopod");
        let pods = crictl.json(&["pods", "--label", "app=web"])?;
        assert_eq!(pods["items"][0]["id"], pod.as_str());

        let file = crictl.file("container.json", &container("nginx", "nginx", &[]))?;
        let id = crictl.id(&["create", &pod, &file, &pod_file])?;
        assert_eq!(
            crictl.json(&["inspect", &id])?["status"]["state"],
            "CONTAINER_CREATED"
        );
        crictl.run(&["start", &id])?;
        let status = crictl.json(&["inspect", &id])?;
        assert_eq!(status["status"]["state"], "CONTAINER_RUNNING");
        assert_eq!(status["status"]["image"]["image"], image("nginx"));
        assert_eq!(status["status"]["labels"]["part"], "nginx");
        let running = crictl.json(&["ps", "--pod", &pod])?;
        assert_eq!(running["containers"][0]["id"], id.as_str());

        node.wait_logged(&id, "start worker process")?;
        let fetch = [
            "exec",
            "-s",
            &id,
            "wget",
            "-q",
            "-O",
            "-",
            "http://127.0.0.1/",
        ];
        // crictl ends both streams with newlines of its own.
        assert_eq!(crictl.run(&fetch)?.trim_end(), PAGE.trim_end());
        node.wait_logged(&id, "GET / HTTP/1.1")?;
        let logs = crictl.output(&["logs", &id])?;
        assert!(logs.status.success());
        let text = [logs.stdout, logs.stderr].concat();
        assert!(String::from_utf8_lossy(&text).contains("GET / HTTP/1.1"));

        crictl.run(&["stop", "--timeout", "60", &id])?;
        let status = crictl.json(&["inspect", &id])?;
        assert_eq!(status["status"]["state"], "CONTAINER_EXITED");
        // SIGQUIT, the image's stop signal, ends nginx gracefully.
        assert_eq!(status["status"]["exitCode"], 0, "{status}");
        assert_eq!(status["status"]["reason"], "Completed");
        crictl.run(&["rm", &id])?;
        crictl.run(&["stopp", &pod])?;
        assert_eq!(
            crictl.json(&["inspectp", &pod])?["status"]["state"],
            "SANDBOX_NOTREADY"
        );
        crictl.run(&["rmp", &pod])?;
        crictl.run(&["rmi", &image("nginx")])?;
        assert_eq!(crictl.json(&["pods"])?["items"], json!([]));
        assert_eq!(crictl.json(&["images"])?["images"], json!([]));
        Ok(())
    })
}

#[test]
fn crictl_shows_grpc_codes_of_what_goes_wrong() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let crictl = node.crictl()?;
        let fails = |arguments: &[&str], code: &str, text: &str| -> Result<()> {
            let error = crictl.fails(arguments)?;
            let message = &error.message;
            assert!(message.contains(code) && message.contains(text), "{error}");
            Ok(())
        };
        fails(
            &["pull", &format!("{}-none", image("nginx"))],
            "NotFound",
            "nginx:1-none",
        )?;
        let file = crictl.file("sandbox.json", &sandbox(node, "web"))?;
        fails(
            &["runp", "--runtime", "kata", &file],
            "InvalidArgument",
            "isopod",
        )?;

        let mut host = sandbox(node, "host");
        host["linux"] = json!({ "security_context": { "namespace_options": { "network": 2 } } });
        let host = crictl.file("host.json", &host)?;
        fails(&["runp", &host], "InvalidArgument", "network")?;

        let pod = crictl.id(&["runp", &file])?;
        fails(&["runp", &file], "AlreadyExists", "web")?;
        let missing = crictl.file("c.json", &container("c", "busybox", &["true"]))?;
        fails(
            &["create", &pod, &missing, &file],
            "NotFound",
            &image("busybox"),
        )?;
        Ok(())
    })
}

#[test]
fn crictl_stats_and_filters_show_only_what_is_asked_for() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let crictl = node.crictl()?;
        crictl.run(&["pull", &image("busybox")])?;
        let file = crictl.file("sandbox.json", &sandbox(node, "web"))?;
        let pod = crictl.id(&["runp", &file])?;
        let one = crictl.file("one.json", &container("one", "busybox", &["sleep", "1000"]))?;
        let two = crictl.file("two.json", &container("two", "busybox", &["sleep", "1000"]))?;
        let one = crictl.id(&["create", &pod, &one, &file])?;
        let two = crictl.id(&["create", &pod, &two, &file])?;
        crictl.run(&["start", &one])?;

        let ids = |arguments: &[&str]| {
            crictl.run(&[&["ps", "--quiet", "--no-trunc"], arguments].concat())
        };
        assert_eq!(ids(&[])?.trim(), one, "only running ones");
        assert_eq!(ids(&["--all"])?.lines().count(), 2);
        assert_eq!(ids(&["--all", "--label", "part=two"])?.trim(), two);
        assert_eq!(ids(&["--all", "--state", "created"])?.trim(), two);
        assert_eq!(ids(&["--all", "--name", "^one$"])?.trim(), one);
        assert_eq!(
            crictl
                .run(&["pods", "--quiet", "--no-trunc", "--state", "notready"])?
                .trim(),
            ""
        );
        crictl.run(&["stopp", &pod])?;
        assert_eq!(
            ids(&[])?.trim(),
            "",
            "a stopped pod has no running container"
        );
        crictl.run(&["rmp", &pod])?;
        assert_eq!(
            ids(&["--all"])?.trim(),
            "",
            "a removed pod has no container"
        );
        Ok(())
    })
}

//! `isopod run`: one line, one container.

use std::io::Write as _;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result};
use isopod_tests::node::{self, Node, Options, image};

fn run(node: &Node, arguments: &[&str], input: &[u8]) -> Result<Output> {
    let mut child = node
        .isopod()?
        .arg("run")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("stdin is piped")?
        .write_all(input)?;
    Ok(child.wait_with_output()?)
}

#[test]
fn output_and_exit_status_are_the_containers() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let script = "echo out; echo err >&2; exit 42";
        let output = run(node, &[&image("busybox"), "sh", "-c", script], b"")?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(42), "{err}");
        assert_eq!(output.stdout, b"out\n");
        assert!(err.lines().any(|line| line == "err"), "{err}");
        assert_eq!(node.cri().pods(None)?, [], "the pod is removed afterwards");
        assert_eq!(node.cri().list_images()?.len(), 1, "the image is kept");
        Ok(())
    })
}

#[test]
fn standard_input_reaches_the_container_and_ends() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let output = run(
            node,
            &["--interactive", &image("busybox"), "wc", "-c"],
            &[b'x'; 100_000],
        )?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            "100000",
            "{err}"
        );
        assert!(output.status.success());
        Ok(())
    })
}

#[test]
fn a_command_that_does_not_exist_is_told_and_leaves_nothing() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let output = run(node, &[&image("busybox"), "/no/such/command"], b"")?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(err.contains("/no/such/command"), "{err}");
        assert_eq!(node.cri().pods(None)?, []);
        Ok(())
    })
}

#[test]
fn an_image_that_does_not_exist_is_told() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let output = run(node, &[&image("none"), "true"], b"")?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(err.contains("not found"), "{err}");
        Ok(())
    })
}

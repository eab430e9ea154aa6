//! The daemon's own life: what it says of itself, its configuration, start and stop.

use std::fs;

use anyhow::{Context as _, Result};
use isopod_tests::node::{self, Images, Options};
use isopod_tests::process::command;

fn without_images() -> Options {
    Options::host().images(Images::None)
}

#[test]
fn version_names_the_runtime_and_the_api() -> Result<()> {
    node::run(without_images(), |node| {
        let version = node.cri().version()?;
        assert_eq!(version.version, "0.1.0");
        assert_eq!(version.runtime_name, "isopod");
        assert_eq!(version.runtime_version, env!("CARGO_PKG_VERSION"));
        assert_eq!(version.runtime_api_version, "v1");
        Ok(())
    })
}

#[test]
fn status_tells_conditions_and_handlers() -> Result<()> {
    node::run(without_images(), |node| {
        let status = node.cri().status()?;
        let conditions = status.status.context("no status")?.conditions;
        for kind in ["RuntimeReady", "NetworkReady"] {
            assert!(
                conditions.iter().any(|condition| condition.r#type == kind),
                "{conditions:?}"
            );
        }
        let handlers: Vec<&str> = status
            .runtime_handlers
            .iter()
            .map(|handler| handler.name.as_str())
            .collect();
        assert!(
            handlers.contains(&"isopod") && handlers.contains(&""),
            "{handlers:?}"
        );
        Ok(())
    })
}

#[test]
fn crictl_info_and_version_understand_the_daemon() -> Result<()> {
    node::run(without_images(), |node| {
        let crictl = node.crictl()?;
        assert!(crictl.run(&["version"])?.contains("isopod"));
        let info = crictl.json(&["info"])?;
        assert!(info["status"]["conditions"].is_array(), "{info}");
        assert!(crictl.run(&["pods"])?.contains("POD ID"));
        Ok(())
    })
}

#[test]
fn the_default_configuration_is_printed_and_accepted() -> Result<()> {
    node::run(without_images(), |node| {
        let output = node
            .isopod()?
            .args(["serve", "--print-default-config"])
            .output()?;
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout)?;
        let table: toml::Table = text.parse().context("the default configuration")?;
        for key in ["socket", "root_dir", "state_dir", "vm"] {
            assert!(
                table.contains_key(key),
                "{key} is not in the default configuration"
            );
        }
        Ok(())
    })
}

#[test]
fn every_problem_of_a_configuration_is_told_with_its_key() -> Result<()> {
    node::run(without_images(), |node| {
        let path = node.folder().join("wrong.toml");
        fs::write(
            &path,
            "sockte = '/run/x'\n[vm]\nmemory_mib = 'much'\nmax_vcpus = 100000\n",
        )?;
        let program = isopod_tests::environment::binary("isopod")?;
        let output = command(program)
            .arg("--config")
            .arg(&path)
            .arg("serve")
            .output()?;
        assert!(!output.status.success());
        let message = String::from_utf8_lossy(&output.stderr);
        for text in ["sockte", "vm.memory_mib", "vm.max_vcpus", "wrong.toml"] {
            assert!(message.contains(text), "{text} is not in {message:?}");
        }
        Ok(())
    })
}

#[test]
fn a_second_daemon_for_the_same_folders_is_refused() -> Result<()> {
    node::run(without_images(), |node| {
        let output = node.isopod()?.arg("serve").output()?;
        assert!(!output.status.success());
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains("isopod"), "{message}");
        // And the first is still there.
        node.cri().version()?;
        Ok(())
    })
}

#[test]
fn a_daemon_that_was_killed_starts_again_over_its_old_socket() -> Result<()> {
    node::run(without_images(), |node| {
        node.kill_daemon();
        assert!(node.cri().version().is_err());
        node.start_daemon()?;
        node.cri().version()?;
        Ok(())
    })
}

#[test]
fn doctor_tells_check_by_check_and_fails_where_a_machine_cannot_run() -> Result<()> {
    node::run(without_images().vm("kvm", "/nonexistent/kvm"), |node| {
        let output = node.isopod()?.arg("doctor").output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success(), "{text}");
        for what in [
            "/nonexistent/kvm",
            "cgroup",
            "tun",
            "overlay",
            "kernel",
            "agent image",
        ] {
            assert!(text.contains(what), "{what} is not in:\n{text}");
        }
        Ok(())
    })
}

//! The files in `deploy/`, as far as they can be checked without a kubelet; `cargo xtask test kubelet` runs
//! pods with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use isopod_tests::kubelet::deploy;
use isopod_tests::network::output;
use isopod_tests::node::{self, Images, Options};
use isopod_tests::{environment, skip};

/// A root file system with a unit, and a real daemon where the unit wants it.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn new(unit: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let root = Self { folder };
        fs::create_dir_all(root.path("/etc/systemd/system"))?;
        fs::write(root.path("/etc/systemd/system/isopod.service"), unit)?;
        root.program("/usr/bin/isopod", &environment::binary("isopod")?)?;
        root.program("/sbin/modprobe", Path::new("/bin/true"))?;
        Ok(root)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    fn program(&self, path: &str, program: &Path) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a program lies in a folder")?)?;
        fs::copy(program, &path).with_context(|| format!("copying {}", program.display()))?;
        Ok(())
    }

    fn verify(&self) -> Result<Output> {
        let root = format!("--root={}", self.folder.path().display());
        // The targets that come before it are not in this root.
        let arguments = [
            &root,
            "verify",
            "--recursive-errors=no",
            "--man=no",
            "isopod.service",
        ];
        output("systemd-analyze", &arguments)
    }
}

#[test]
fn systemd_accepts_the_unit_and_would_not_accept_a_wrong_one() -> Result<()> {
    if output("systemd-analyze", &["--version"]).is_err() {
        skip("there is no systemd-analyze");
        return Ok(());
    }
    let unit = fs::read_to_string(deploy::unit())?;
    let good = Root::new(&unit)?.verify()?;
    ensure!(good.status.success() && good.stderr.is_empty(), "{good:?}");
    for (right, wrong) in [
        ("KillMode=process", "KilMode=process"),
        ("/usr/bin/isopod", "/usr/bin/other"),
    ] {
        ensure!(unit.contains(right), "{right}");
        let bad = Root::new(&unit.replace(right, wrong))?.verify()?;
        ensure!(!bad.stderr.is_empty(), "{wrong}: {bad:?}");
    }
    Ok(())
}

#[test]
fn the_units_folders_are_those_of_the_default_configuration() -> Result<()> {
    let unit = fs::read_to_string(deploy::unit())?;
    let value = |key: &str| {
        let value = unit.lines().find_map(|line| line.strip_prefix(key));
        value.with_context(|| format!("no {key}"))
    };
    let command = output(
        &environment::binary("isopod")?.display().to_string(),
        &["serve", "--print-default-config"],
    )?;
    let defaults: toml::Table = toml::from_str(&String::from_utf8(command.stdout)?)?;
    let is = |key: &str, path: String| -> Result<()> {
        let default = defaults.get(key).and_then(toml::Value::as_str);
        ensure!(default == Some(path.as_str()), "{key}: {default:?}, {path}");
        Ok(())
    };
    let run = format!("/run/{}", value("RuntimeDirectory=")?);
    is("state_dir", run)?;
    is(
        "root_dir",
        format!("/var/lib/{}", value("StateDirectory=")?),
    )?;
    let config = deploy::read(&deploy::kubelet_config())?;
    let endpoint = config["containerRuntimeEndpoint"].as_str();
    let socket = endpoint.and_then(|endpoint| endpoint.strip_prefix("unix://"));
    is("socket", socket.context("no socket")?.to_owned())
}

#[test]
fn the_runtime_classs_handler_is_one_that_the_daemon_offers() -> Result<()> {
    node::run(Options::host().images(Images::None), |node| {
        let class = deploy::read(&deploy::runtime_class())?;
        assert_eq!(class["apiVersion"], "node.k8s.io/v1");
        assert_eq!(class["kind"], "RuntimeClass");
        let status = node.cri().status()?;
        let mut offered = status.runtime_handlers.iter();
        let wanted = class["handler"].as_str().context("no handler")?;
        ensure!(offered.any(|handler| handler.name == wanted), "{status:?}");
        ensure!(deploy::overhead()?["memory"].is_string());
        Ok(())
    })
}

//! Who pulls: a fresh daemon on empty folders, and a client of it for each image.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::cost::{self, Cost};
use crate::environment;
use crate::process::{Child, command};
use crate::wait::wait_for;

/// How long a daemon may take to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// containerd without what a pull does not need; its defaults otherwise.
const CONTAINERD: &str = r#"version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.tracing"]
"#;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Puller {
    Isopod,
    /// Debian's, with overlayfs.
    Containerd,
}

impl Puller {
    /// Pulls these images one after the other.
    pub(super) fn pull(self, registry: &str, images: &[String]) -> Result<Cost> {
        let folder = tempfile::Builder::new()
            .prefix("isopod-bench-")
            .tempdir_in(environment::data())?;
        let socket = folder.path().join("daemon.sock");
        let log = folder.path().join("log");
        let output = fs::File::create(&log)?;
        let config = folder.path().join("config.toml");
        fs::write(&config, self.config(folder.path(), registry))?;
        let program = match self {
            Self::Isopod => environment::binary("isopod")?,
            Self::Containerd => "containerd".into(),
        };
        let mut daemon = command(program);
        daemon.arg("--config").arg(&config);
        if self == Self::Isopod {
            daemon.arg("serve");
        }
        let daemon = daemon
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        // setpriv becomes the daemon: the process id stays.
        let mut daemon = Child::new(daemon);
        wait_for("the daemon to answer", LIMIT, || {
            let listed = self.client(&config, &socket, None);
            listed.is_ok().then_some(())
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let cost = cost::of(daemon.pid(), || {
            images
                .iter()
                .try_for_each(|image| self.client(&config, &socket, Some(image)))
        })?;
        daemon.terminate(LIMIT)?;
        Ok(cost)
    }

    fn config(self, folder: &Path, registry: &str) -> String {
        let folder = folder.display();
        match self {
            Self::Isopod => format!(
                "socket = '{folder}/daemon.sock'\nroot_dir = '{folder}/root'\n\
                 state_dir = '{folder}/state'\n[registry.mirrors]\n\
                 '{registry}' = [{{ host = '{registry}', plain_http = true }}]\n"
            ),
            Self::Containerd => format!(
                "root = '{folder}/root'\nstate = '{folder}/state'\n{CONTAINERD}\
                 [grpc]\naddress = '{folder}/daemon.sock'\n"
            ),
        }
    }

    /// Pulls an image, or without one lists those that are there.
    fn client(self, config: &Path, socket: &Path, image: Option<&str>) -> Result<()> {
        let mut client = match self {
            Self::Isopod => {
                let mut client = command(environment::binary("isopod")?);
                client.arg("--config").arg(config);
                match image {
                    Some(image) => client.args(["pull", "--quiet", image]),
                    None => client.arg("images"),
                };
                client
            }
            Self::Containerd => {
                let mut client = command("ctr");
                client.arg("--address").arg(socket).arg("images");
                match image {
                    Some(image) => {
                        client.args(["pull", "--snapshotter", "overlayfs", "--plain-http", image])
                    }
                    None => client.arg("ls"),
                };
                client
            }
        };
        let output = client.stdin(Stdio::null()).output()?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{self:?}: {}", message.trim());
        Ok(())
    }
}

//! Debian's docker-registry on a loopback port.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::process::{Child, command};
use crate::wait::wait_for;

/// Whether images may be pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Several registries may serve one storage.
    ReadOnly,
    /// For filling a storage.
    ReadWrite,
}

/// A running registry. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    port: u16,
    config: TempDir,
}

/// How long the registry may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(60);

impl Registry {
    /// Serves `storage` on a port of 127.0.0.1, and answers when it listens.
    ///
    /// # Errors
    /// docker-registry is not installed, or does not start; its log is in the error.
    pub fn start(storage: &Path, access: Access) -> Result<Self> {
        let port = free_port()?;
        let config = tempfile::Builder::new()
            .prefix("isopod-registry-")
            .tempdir()?;
        let path = config.path().join("config.yml");
        let readonly = access == Access::ReadOnly;
        fs::write(
            &path,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n\
                 storage:\n  filesystem: {{rootdirectory: '{}'}}\n  \
                 maintenance: {{readonly: {{enabled: {readonly}}}, uploadpurging: {{enabled: false}}}}\n",
                storage.display()
            ),
        )?;
        let log = config.path().join("log");
        let output = fs::File::create(&log)?;
        let process = command("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting docker-registry (apt-get install docker-registry)")?;
        let registry = Self {
            process: Child::new(process),
            port,
            config,
        };
        let listens = || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .is_ok()
                .then_some(())
        };
        wait_for("docker-registry to listen", START_LIMIT, listens)
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(registry)
    }

    /// `127.0.0.1:<port>`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What the registry printed.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.config.path().join("log")).unwrap_or_default()
    }

    /// Ends the registry, and with it every open connection.
    pub fn stop(&mut self) {
        self.process.kill();
    }
}

/// A port that nobody listens on now. Another process could take it before the registry does; then
/// the registry says so and the test fails.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

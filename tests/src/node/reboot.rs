//! What a machine that loses its power and boots again leaves of a node.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Node;
use super::leaks;
use crate::network::{output, run};
use crate::wait::{LIMIT, wait_for};

/// Where network namespaces have their names.
const NAMESPACES: &str = "/run/netns";

impl Node {
    /// Ends every process of the node at once, takes away what lies in memory, and starts the daemon. Only
    /// within [`crate::network::isolated`]: all network namespaces go.
    ///
    /// # Errors
    /// Something stays, or the daemon does not start.
    pub fn reboot(&self) -> Result<()> {
        let sandboxes: Vec<_> = self
            .cri()
            .pods(None)?
            .into_iter()
            .map(|pod| pod.id)
            .collect();
        self.kill_daemon();
        for vmm in self.vmms() {
            vmm.kill();
        }
        wait_for("the VMMs to end", LIMIT, || {
            self.vmms().is_empty().then_some(())
        })?;
        fs::remove_dir_all(self.state_dir()).context("removing the daemon's state")?;
        fs::create_dir(self.state_dir())?;
        for namespace in leaks::entries(NAMESPACES) {
            let name = namespace.file_name().context("a namespace has a name")?;
            run("ip", &["netns", "delete", &name.to_string_lossy()])?;
        }
        // There is none when no pod had a network.
        output("ip", &["link", "delete", "cni0"])?;
        for cgroup in leaks::cgroups(Path::new("/sys/fs/cgroup")) {
            let path = cgroup.display().to_string();
            if sandboxes.iter().any(|id| path.contains(id.as_str())) {
                fs::remove_dir(&cgroup).with_context(|| format!("removing {path}"))?;
            }
        }
        self.start_daemon()
    }
}

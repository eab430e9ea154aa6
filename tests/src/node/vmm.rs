//! A sandbox's VMM as the host sees it.

use anyhow::{Context as _, Result};

use super::Node;
use crate::process::Process;

impl Node {
    /// The process of the sandbox's VMM.
    ///
    /// # Errors
    /// There is none.
    pub fn vmm(&self, sandbox: &str) -> Result<Process> {
        self.vmms()
            .into_iter()
            .find(|process| process.command_line.contains(sandbox))
            .with_context(|| format!("no VMM of sandbox {sandbox}"))
    }

    /// The VMMs of all sandboxes of this node.
    #[must_use]
    pub fn vmms(&self) -> Vec<Process> {
        let folder = self.state_dir().display().to_string();
        Process::all()
            .into_iter()
            .filter(|process| process.command_line.contains("isopod-vmm"))
            .filter(|process| process.command_line.contains(&folder))
            .collect()
    }
}

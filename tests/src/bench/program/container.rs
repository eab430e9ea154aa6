//! The program in a container, as the kubelet would start it.

use std::cell::Cell;

use anyhow::{Context as _, Result, bail};
use isopod_proto::cri::{ContainerState, Mount, PodSandboxConfig};

use super::{Expected, Figures, LIMIT, parse};
use crate::log::{Stream, texts};
use crate::node::{
    Node, container_config, image as reference, pod_config, privileged, privileged_pod,
};
use crate::wait::wait_for;

/// What runs.
pub(in crate::bench) struct Program<'a> {
    /// The image's name at the registry.
    pub(in crate::bench) image: &'static str,
    /// The program and its arguments.
    pub(in crate::bench) command: &'a [&'a str],
    pub(in crate::bench) mounts: &'a [Mount],
    pub(in crate::bench) expected: &'a [Expected],
}

/// A daemon that has the program's image.
pub(in crate::bench) struct Pods<'a> {
    node: &'a Node,
    program: Program<'a>,
    /// How many pods there were.
    count: Cell<u32>,
}

impl<'a> Pods<'a> {
    pub(in crate::bench) fn new(node: &'a Node, program: Program<'a>) -> Result<Self> {
        node.cri().pull(&reference(program.image))?;
        Ok(Self {
            node,
            program,
            count: Cell::new(0),
        })
    }

    /// One fresh guest; `before` happens just before the program starts.
    pub(in crate::bench) fn measure(&self, before: impl FnOnce() -> Result<()>) -> Result<Figures> {
        self.count.set(self.count.get() + 1);
        let name = format!("{}-{}", self.program.image, self.count.get());
        let config = privileged_pod(pod_config(self.node, &name));
        let cri = self.node.cri();
        let pod = cri.run_pod(config.clone())?;
        let figures = self.figures(&pod, config, before);
        if figures.is_err()
            && let Ok(vmm) = self.node.vmm(&pod)
        {
            // A guest that stands still would be waited for.
            vmm.kill();
        }
        cri.stop_pod(&pod)?;
        cri.remove_pod(&pod)?;
        figures
    }

    fn figures(
        &self,
        pod: &str,
        config: PodSandboxConfig,
        before: impl FnOnce() -> Result<()>,
    ) -> Result<Figures> {
        let program = &self.program;
        let mut container = container_config("program", program.image, program.command);
        container.mounts = program.mounts.to_vec();
        // So that it can tell the guest's kernel to forget.
        let container = privileged(container);
        let cri = self.node.cri();
        let id = cri.create(pod, container, config)?;
        before()?;
        cri.start(&id)?;
        let text = |stream| -> Result<String> {
            let lines = texts(&self.node.container_log(&id)?, stream);
            Ok(lines.iter().map(|line| format!("{line}\n")).collect())
        };
        let said = || text(Stream::Stdout).unwrap_or_default();
        // While it measures, nobody asks the daemon: it would run on the guest's processor.
        wait_for("the container's program", LIMIT, || {
            parse(&said(), program.expected)
        })
        .or_else(|late| {
            let status = cri.container_status(&id)?;
            if status.state() != ContainerState::ContainerExited {
                return Err(late);
            }
            let (code, error) = (status.exit_code, text(Stream::Stderr)?);
            bail!("the program ended with {code}: {error}")
        })
        .with_context(|| format!("a pod whose program said {:?}", said()))?
    }
}

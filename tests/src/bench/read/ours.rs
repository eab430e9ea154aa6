//! The reader in a container, as the kubelet would start it.

use std::cell::Cell;

use anyhow::{Context as _, Result, bail};
use isopod_proto::cri::{
    ContainerState, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, PodSandboxConfig,
};

use super::{Figures, LIMIT, forget, image, parse};
use crate::log::{Stream, texts};
use crate::node::{Node, container_config, image as reference, pod_config};
use crate::wait::wait_for;

/// A daemon that has the image.
pub(super) struct Pods<'a> {
    node: &'a Node,
    /// How many pods there were.
    count: Cell<u32>,
}

impl<'a> Pods<'a> {
    pub(super) fn new(node: &'a Node) -> Result<Self> {
        node.cri().pull(&reference(image::NAME))?;
        Ok(Self {
            node,
            count: Cell::new(0),
        })
    }

    /// One fresh guest.
    pub(super) fn measure(&self) -> Result<Figures> {
        self.count.set(self.count.get() + 1);
        let config = self.config(&format!("read-{}", self.count.get()));
        let cri = self.node.cri();
        let pod = cri.run_pod(config.clone())?;
        let figures = self.figures(&pod, config);
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

    /// Privileged, so that a container can tell the guest's kernel to forget.
    fn config(&self, name: &str) -> PodSandboxConfig {
        let security = LinuxSandboxSecurityContext {
            privileged: true,
            ..LinuxSandboxSecurityContext::default()
        };
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(security),
                ..LinuxPodSandboxConfig::default()
            }),
            ..pod_config(self.node, name)
        }
    }

    fn figures(&self, pod: &str, config: PodSandboxConfig) -> Result<Figures> {
        let command = [image::READER, image::TREE, image::LARGE];
        let mut container = container_config("reader", image::NAME, &command);
        container.linux = Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                privileged: true,
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        });
        let cri = self.node.cri();
        let id = cri.create(pod, container, config)?;
        forget(&self.node.root_dir().join("images"))?;
        cri.start(&id)?;
        let text = |stream| -> Result<String> {
            let lines = texts(&self.node.container_log(&id)?, stream);
            Ok(lines.iter().map(|line| format!("{line}\n")).collect())
        };
        let said = || text(Stream::Stdout).unwrap_or_default();
        wait_for("the container's reader", LIMIT, || {
            if let Some(figures) = parse(&said()) {
                return Some(figures);
            }
            match cri.container_status(&id) {
                Ok(status) if status.state() == ContainerState::ContainerExited => {
                    let error = text(Stream::Stderr).unwrap_or_default();
                    // The last line may have come since.
                    parse(&said()).or_else(|| Some(fail(status.exit_code, &error)))
                }
                _ => None,
            }
        })
        .with_context(|| format!("a pod whose reader said {:?}", said()))?
    }
}

fn fail(code: i32, error: &str) -> Result<Figures> {
    bail!("the reader ended with {code}: {error}")
}

//! What the kubelet sees: how long a pod and its first container take through the CRI socket.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use isopod_proto::cri::PodSandboxConfig;

use super::program::{Figures, LIMIT, patiently};
use crate::node::{self, Node, Options, image, pod_config, shell};

/// The pause between two looks at the log, the measurement's error.
const PAUSE: Duration = Duration::from_millis(1);

/// Times of each repetition.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// `RunPodSandbox` to its answer: the pod is Ready.
    pub(super) sandbox: Vec<Duration>,
    /// `CreateContainer` and `StartContainer` to the first byte in the container's log.
    pub(super) first_output: Vec<Duration>,
}

/// Runs pods one after the other on a daemon of its own; the image is there before.
pub(super) fn start(repetitions: u32) -> Result<Times> {
    let mut times = Times::default();
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("busybox"))?;
        let count = Cell::new(0);
        for repetition in 0..=repetitions {
            let figures = patiently("a pod", || {
                count.set(count.get() + 1);
                measure(node, &format!("bench-{}", count.get()))
            })?;
            let [sandbox, first_output] = figures[..] else {
                unreachable!("a pod has two figures");
            };
            eprintln!("pod {sandbox:?}, first output {first_output:?}");
            if repetition > 0 {
                times.sandbox.push(sandbox);
                times.first_output.push(first_output);
            }
        }
        Ok(())
    })?;
    Ok(times)
}

/// One fresh pod: until it is Ready, and from then to its container's first output.
fn measure(node: &Node, name: &str) -> Result<Figures> {
    let config = pod_config(node, name);
    let begin = Instant::now();
    let pod = node.cri().run_pod(config.clone())?;
    let sandbox = begin.elapsed();
    let first_output = first_output(node, &pod, name, config);
    // Nothing of its end is measured, and a guest that stands still would be waited for.
    if let Ok(vmm) = node.vmm(&pod) {
        vmm.kill();
    }
    node.cri().stop_pod(&pod)?;
    node.cri().remove_pod(&pod)?;
    Ok(vec![sandbox, first_output?])
}

fn first_output(node: &Node, pod: &str, name: &str, config: PodSandboxConfig) -> Result<Duration> {
    let log = node.log_directory(name).join("hello.log");
    let hello = shell("hello", "echo hello; sleep 60");
    let begin = Instant::now();
    let container = node.cri().create(pod, hello, config)?;
    node.cri().start(&container)?;
    while std::fs::metadata(&log).map_or(0, |log| log.len()) == 0 {
        ensure!(begin.elapsed() < LIMIT, "the container printed nothing");
        std::thread::sleep(PAUSE);
    }
    Ok(begin.elapsed())
}

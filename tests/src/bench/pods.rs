//! What the kubelet sees: how long a pod and its first container take through the CRI socket.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::node::{self, Options, image, pod_config, shell};

/// How long the container's first output may take.
const LIMIT: Duration = Duration::from_secs(60);

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
        for repetition in 0..=repetitions {
            let name = format!("bench-{repetition}");
            let config = pod_config(node, &name);
            let begin = Instant::now();
            let pod = node.cri().run_pod(config.clone())?;
            let sandbox = begin.elapsed();

            let log = node.log_directory(&name).join("hello.log");
            let begin = Instant::now();
            let container =
                node.cri()
                    .create(&pod, shell("hello", "echo hello; sleep 60"), config)?;
            node.cri().start(&container)?;
            while std::fs::metadata(&log).map_or(0, |log| log.len()) == 0 {
                let waited = begin.elapsed();
                (waited < LIMIT)
                    .then_some(())
                    .context("the container printed nothing")?;
                std::thread::sleep(PAUSE);
            }
            let first_output = begin.elapsed();
            node.cri().stop(&container, 0)?;
            node.cri().stop_pod(&pod)?;
            node.cri().remove_pod(&pod)?;
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

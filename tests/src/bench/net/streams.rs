//! What people's streams do, through the daemon: commands in a container, and its output.

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_proto::cri::ExecSyncRequest;
use tonic::{Response, Status};

use crate::node::{self, Node, Options, shell};
use crate::process::Child;
use crate::streams::TRANSPORTS;

/// What an attached client gets, bytes: less than what interfaces carry, because it goes through the
/// guest's agent, the VMM, the daemon, crictl and the log.
pub(super) const BYTES: u64 = 8 << 20;

/// Bytes in one write of the container.
const BLOCK: u64 = 64 << 10;

/// Times of each repetition.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// `ExecSync` of `true`.
    pub(super) exec: Vec<Duration>,
    /// [`BYTES`] of a container's output to an attached crictl, by transport.
    pub(super) attach: [Vec<Duration>; TRANSPORTS.len()],
}

/// Measures on a daemon of its own; the first of each does not count.
pub(super) fn measure(repetitions: u32) -> Result<Times> {
    let mut times = Times::default();
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("bench")?;
        let container = node.start(&pod, shell("main", "sleep 10000"))?;
        let execs = exec(node, &container, repetitions)?;
        eprintln!("exec {execs:?}");
        times.exec.extend(execs.into_iter().skip(1));
        for repetition in 0..=repetitions {
            for (transport, times) in TRANSPORTS.into_iter().zip(&mut times.attach) {
                let name = format!("{transport}-{repetition}");
                let took = attach(node, &pod, &name, transport)?;
                eprintln!("attach {transport} {took:?}");
                if repetition > 0 {
                    times.push(took);
                }
            }
        }
        Ok(())
    })?;
    Ok(times)
}

/// Runs `true` again and again over one connection, as the kubelet has it.
fn exec(node: &Node, container: &str, repetitions: u32) -> Result<Vec<Duration>> {
    let request = ExecSyncRequest {
        container_id: container.to_owned(),
        cmd: vec!["true".to_owned()],
        timeout: 0,
    };
    let times = node.cri().runtime(async |mut cri| {
        let mut times = Vec::new();
        for _ in 0..=repetitions {
            let begin = Instant::now();
            let answer = cri.exec_sync(request.clone()).await?.into_inner();
            times.push(begin.elapsed());
            if answer.exit_code != 0 {
                return Err(Status::unknown(format!("true ended with {answer:?}")));
            }
        }
        Ok(Response::new(times))
    });
    times.context("ExecSync")
}

/// From a container's first byte to its last one, at crictl's standard output. The container's log
/// takes them, too, as it always does.
fn attach(node: &Node, pod: &str, name: &str, transport: &str) -> Result<Duration> {
    let script = format!(
        "read go; dd if=/dev/zero bs={BLOCK} count={} 2> /dev/null",
        BYTES / BLOCK
    );
    let mut config = shell(name, &script);
    (config.stdin, config.stdin_once) = (true, true);
    let id = node.start(pod, config)?;
    let mut child = node
        .crictl()?
        .command(&["attach", "--transport", transport, "-i", &id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("it is piped")?;
    let mut stdout = child.stdout.take().context("it is piped")?;
    let _crictl = Child::new(child);
    stdin.write_all(b"go\n")?;
    drop(stdin);

    let mut buffer = vec![0; usize::try_from(BLOCK)?];
    let mut heard = u64::try_from(stdout.read(&mut buffer)?)?;
    let begin = Instant::now();
    let mut took = Duration::ZERO;
    loop {
        match stdout.read(&mut buffer)? {
            0 => break,
            count => heard += u64::try_from(count)?,
        }
        took = begin.elapsed();
    }
    ensure!(heard == BYTES, "{heard} bytes came over {transport}");
    node.wait_exited(&id)?;
    node.cri().remove(&id)?;
    Ok(took)
}

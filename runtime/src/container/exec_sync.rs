//! A command in a container, from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::exec::{Exec, ExecProcess, ExecRequest};
use super::{Container, ContainerError, Containers};
use crate::vm::{Output, ProcessOutput, ProcessStream};

/// Most bytes of each stream that are returned; the rest is read and thrown away, as in containerd.
const OUTPUT_MAX: usize = 16 << 20;

/// How long output may go on after the command has exited: a process that it left in the
/// background may hold the pipe for ever.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How long a command that took too long may take to die.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What a command did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ExecOutput {
    /// What it wrote to standard output, at most 16 MiB.
    pub(crate) stdout: Vec<u8>,
    /// What it wrote to standard error, at most 16 MiB.
    pub(crate) stderr: Vec<u8>,
    /// 0 to 255.
    pub(crate) exit_code: i32,
}

impl Containers {
    /// Runs a command in a running container and returns what it wrote. The limit counts from its
    /// start.
    ///
    /// # Errors
    ///
    /// [`ContainerError::ExecTimeout`] when it takes longer than `limit`; it has been killed then,
    /// with all that it started.
    #[tracing::instrument(skip_all, fields(container_id = %container.id))]
    pub(crate) async fn exec_sync(
        self: &Arc<Self>,
        container: &Container,
        args: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecOutput, ContainerError> {
        let request = ExecRequest {
            args,
            terminal: false,
            stdin: false,
        };
        let Exec { stream, process } = self.exec(&container.id, request).await?;
        let reading = read(stream, &process);
        let output = match limit {
            None => Some(reading.await?),
            Some(limit) => timeout(limit, reading).await.ok().transpose()?,
        };
        if let Some(output) = output {
            // Only now: the agent forgets the process, and what it still has to say, with it.
            process.wait().await?;
            return Ok(output);
        }
        // The caller is told when it is true.
        match timeout(KILL_LIMIT, process.kill()).await {
            Ok(killed) => killed?,
            Err(_elapsed) => tracing::warn!("a command does not die"),
        }
        Err(ContainerError::ExecTimeout(limit.unwrap_or_default()))
    }
}

/// Reads what the process writes until it has exited.
async fn read(stream: ProcessStream, process: &ExecProcess) -> Result<ExecOutput, ContainerError> {
    let (output, _input) = stream.split();
    let mut collected = ExecOutput::default();
    {
        let reading = collect(output, &mut collected);
        tokio::pin!(reading);
        tokio::select! {
            read = &mut reading => read?,
            exited = process.exited() => {
                exited?;
                if let Ok(read) = timeout(DRAIN_LIMIT, reading).await {
                    read?;
                }
            }
        }
    }
    collected.exit_code = process.exited().await?;
    Ok(collected)
}

async fn collect(
    mut output: ProcessOutput,
    collected: &mut ExecOutput,
) -> Result<(), ContainerError> {
    while let Some(piece) = output.next().await? {
        match piece {
            Output::Stdout(bytes) => keep(&mut collected.stdout, &bytes),
            Output::Stderr(bytes) => keep(&mut collected.stderr, &bytes),
        }
    }
    Ok(())
}

fn keep(kept: &mut Vec<u8>, bytes: &Bytes) {
    let room = OUTPUT_MAX - kept.len();
    kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_over_the_limit_is_cut_at_the_limit() {
        let mut kept = vec![0; OUTPUT_MAX - 3];
        keep(&mut kept, &Bytes::from_static(b"ab"));
        keep(&mut kept, &Bytes::from_static(b"cd"));
        keep(&mut kept, &Bytes::from_static(b"ef"));
        assert_eq!(kept.len(), OUTPUT_MAX);
        assert!(kept.ends_with(b"abc"));
    }
}

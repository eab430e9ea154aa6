//! `ExecSync`: runs a command in a container and answers with what it wrote.

use std::time::Duration;

use isopod_proto::cri::{ExecSyncRequest, ExecSyncResponse};
use tokio_util::sync::CancellationToken;

use super::Cri;
use super::error::CriError;
use crate::container::ContainerError;

pub(super) async fn exec_sync(
    cri: &Cri,
    request: ExecSyncRequest,
    cancel: &CancellationToken,
) -> Result<ExecSyncResponse, CriError> {
    let container = cri.containers.find(&request.container_id)?;
    // Seconds; 0 means as long as it takes.
    let limit = u64::try_from(request.timeout)
        .ok()
        .filter(|seconds| *seconds > 0);
    let limit = limit.map(Duration::from_secs);
    let run = cri.containers.exec_sync(&container, request.cmd, limit);
    // Nobody waits for the answer: the command is killed, as if its time was over.
    let output = cancel.run_until_cancelled(run).await;
    let output = output.unwrap_or(Err(ContainerError::Cancelled))?;
    Ok(ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    })
}

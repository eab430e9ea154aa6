//! `ExecSync`: runs a command in a container and answers with what it wrote.

use std::time::Duration;

use isopod_proto::cri::{ExecSyncRequest, ExecSyncResponse};

use super::Cri;
use super::error::CriError;

pub(super) async fn exec_sync(
    cri: &Cri,
    request: ExecSyncRequest,
) -> Result<ExecSyncResponse, CriError> {
    let container = cri.containers.find(&request.container_id)?;
    // Seconds; 0 means as long as it takes.
    let limit = u64::try_from(request.timeout)
        .ok()
        .filter(|seconds| *seconds > 0);
    let limit = limit.map(Duration::from_secs);
    let output = cri
        .containers
        .exec_sync(&container, request.cmd, limit)
        .await?;
    Ok(ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    })
}

//! One more process in a running container.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use super::payload::Payload;
use super::protocol::{Confinement, ExecRequest};
use super::{OperationError, builder};

/// Starts the process; answers its pid once it was executed.
pub(super) fn exec(request: &ExecRequest, fds: Vec<OwnedFd>) -> Result<i32, OperationError> {
    let path = &request.confinement;
    let error = |source| OperationError::Read {
        path: path.clone(),
        source,
    };
    let text = fs::read(path).map_err(error)?;
    let confinement: Confinement =
        serde_json::from_slice(&text).map_err(|source| error(source.into()))?;
    // It cannot be found any more from inside.
    let users = match &confinement.user {
        None => None,
        Some(user) => Some(open_namespace(&user.namespace)?),
    };

    let runtime = &request.runtime;
    let (builder, outcome) = builder(&runtime.container_id, request.console.as_deref(), fds)?;
    let pid = builder
        .with_executor(Payload::exec(outcome, confinement, users))
        .with_root_path(&runtime.root)?
        .as_tenant()
        .with_process(Some(&request.process))
        .with_sub_cgroup(Some(request.cgroup.clone()))
        .with_detach(true)
        .build()?;
    Ok(pid.as_raw())
}

fn open_namespace(path: &Path) -> Result<OwnedFd, OperationError> {
    match File::open(path) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(OperationError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

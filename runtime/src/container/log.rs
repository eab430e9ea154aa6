//! A container's log: a file of the node, written by the VMM.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Container, ContainerError, ContainerState, Containers};
use crate::id::ExecId;
use crate::vm::Vm;

/// Who may read a log, as in containerd.
const MODE: u32 = 0o640;

impl Container {
    /// Where the log is; `None` when nobody wants one.
    pub(crate) fn log_file(&self) -> Option<PathBuf> {
        let dir = &self.sandbox.config.log_directory;
        let path = &self.config.log_path;
        let wanted = !dir.as_os_str().is_empty() && !path.as_os_str().is_empty();
        wanted.then(|| dir.join(path))
    }
}

impl Containers {
    /// Goes on in a new log file, after the old one was renamed.
    ///
    /// # Errors
    ///
    /// When the container does not run or the file cannot be made.
    pub(crate) async fn reopen_log(&self, container: &Container) -> Result<(), ContainerError> {
        if !matches!(container.state(), ContainerState::Running { .. }) {
            return Err(container.wrong_state("given a new log"));
        }
        let vm = container.sandbox.running_vm()?;
        let descriptor = send(container, &vm).await?;
        if descriptor.is_empty() {
            return Ok(());
        }
        Ok(vm.reopen_log(&container.id, &descriptor).await?)
    }
}

/// Opens the log file and hands it to the VMM; the name it got, empty when there is no log.
pub(super) async fn send(container: &Container, vm: &Vm) -> Result<String, ContainerError> {
    let Some(path) = container.log_file() else {
        return Ok(String::new());
    };
    let at = path.clone();
    let opened = tokio::task::spawn_blocking(move || open(&at)).await;
    let opened = opened
        .map_err(|error| ContainerError::io("opening", path)(std::io::Error::other(error)))?;
    // A name that no earlier attempt can have left behind.
    let name = ExecId::random().map_err(ContainerError::io("reading", "/dev/urandom"))?;
    let name = format!("log.{name}");
    vm.send(vec![(name.clone(), opened?.into())]).await?;
    Ok(name)
}

fn open(path: &Path) -> Result<File, ContainerError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(ContainerError::io("creating", dir))?;
    }
    File::options()
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)
        .map_err(ContainerError::io("opening the log", path))
}

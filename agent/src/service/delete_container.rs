//! Removes a container and everything that was made for it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use isopod_proto::agent::{DeleteContainerRequest, DeleteContainerResponse};

use super::AgentService;
use super::error::AgentError;
use crate::container::{CgroupError, Container, LookupError};
use crate::helper::{Request, launch};
use crate::storage::Mapped;

/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

impl AgentService {
    /// Idempotent: a container that is not known is deleted already.
    pub(super) async fn delete_container(
        &self,
        request: DeleteContainerRequest,
    ) -> Result<DeleteContainerResponse, AgentError> {
        let container = match self.containers.get(&request.container_id) {
            Err(LookupError::Container(_)) => return Ok(DeleteContainerResponse::new()),
            result => result?,
        };
        let _alone = container.lock.write().await;
        self.take_down(&container).await?;
        Ok(DeleteContainerResponse::new())
    }

    /// Takes down what is there of a container, whose lock the caller holds. What cannot be removed
    /// does not keep the rest; the id is free only when everything is gone, so it can be tried again.
    pub(super) async fn take_down(&self, container: &Container) -> Result<(), AgentError> {
        self.end_processes(container).await?;
        for process in container.processes() {
            process.output.close();
        }
        // libcontainer would stumble over the groups of execs.
        let cgroup = container.cgroup.remove().await.map_err(AgentError::from);
        let runtime = self.runtime(&container.id);
        let state = runtime.root.join(&runtime.container_id);
        let deleted = match launch(&self.reaper, &Request::Delete(runtime), &[]).await {
            Ok(_) => Ok(()),
            Err(error) => Err(AgentError::from(error)),
        };
        let mapped = Mapped::new(&self.container_folder(&container.id));
        let mapped = mapped.remove().await.map_err(AgentError::from);
        let attached = self.remove_attached(container).await;
        let rootfs = match container.take_rootfs() {
            None => Ok(()),
            Some(rootfs) => {
                let result = rootfs.clone().remove(&self.surroundings.disks).await;
                if result.is_err() {
                    self.containers.set_rootfs(container, rootfs);
                }
                result.map_err(AgentError::from)
            }
        };
        let folders =
            remove_folder(&state).and(remove_folder(&self.container_folder(&container.id)));
        let mounts = mapped.and(attached).and(rootfs);
        cgroup.and(deleted).and(mounts).and(folders)?;
        self.containers.remove(&container.id);
        Ok(())
    }

    async fn remove_attached(&self, container: &Container) -> Result<(), AgentError> {
        let mut removed = Ok(());
        for attached in container.take_attached() {
            let result = attached.clone().remove(&self.surroundings.disks).await;
            if result.is_err() {
                self.containers.attach(container, attached);
            }
            removed = removed.and(result.map_err(AgentError::from));
        }
        removed
    }

    async fn end_processes(&self, container: &Container) -> Result<(), CgroupError> {
        container.cgroup.kill()?;
        container.cgroup.wait_empty(KILL_TIMEOUT).await?;
        // Dead is not yet collected: whoever waits for the process hears of it before it is gone.
        for process in container.processes() {
            let _ = tokio::time::timeout(KILL_TIMEOUT, process.exited()).await;
        }
        Ok(())
    }
}

fn remove_folder(path: &Path) -> Result<(), AgentError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(AgentError::file(path)),
    }
}

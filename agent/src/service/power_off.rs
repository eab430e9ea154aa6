//! Ends the sandbox.

use std::time::Duration;

use isopod_proto::agent::PowerOffResponse;

use super::AgentService;
use crate::container::Cgroup;
use crate::process::Signal;
use crate::storage::Mapped;

/// How long killed processes may take to be gone before the power goes anyway.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

impl AgentService {
    /// Kills every container, unmounts, and has the machine powered off. Nothing stops it: what
    /// cannot be done in order ends with the power.
    pub(super) async fn power_off(&self) -> PowerOffResponse {
        let everything = Cgroup::new(&self.surroundings.cgroup);
        let killed = match everything.kill() {
            Ok(()) => everything.wait_empty(KILL_TIMEOUT).await,
            Err(error) => Err(error),
        };
        if let Err(error) = killed {
            tracing::warn!(
                error = super::chain(&error),
                "not every process ended before power-off"
            );
        }
        if let Some(holder) = self.pid_namespace.get() {
            // It is never collected before: nothing else ends it.
            let _ = Signal::KILL.send(*holder);
        }
        for container in self.containers.all() {
            let mapped = Mapped::new(&self.container_folder(&container.id));
            if let Err(error) = mapped.remove().await {
                let error = super::chain(&error);
                tracing::warn!(error, "a container's mounts stay mounted");
            }
            if let Some(rootfs) = container.take_rootfs()
                && let Err(error) = rootfs.unmount().await
            {
                tracing::warn!(
                    error = super::chain(&error),
                    "a root file system stays mounted"
                );
            }
        }
        if let Err(error) = self.surroundings.volumes.close().await {
            tracing::warn!(error = super::chain(&error), "the volumes stay mounted");
        }
        if let Some(scratch) = self.scratch.lock().await.take()
            && let Err(error) = scratch.close().await
        {
            tracing::warn!(
                error = super::chain(&error),
                "the scratch disk stays mounted"
            );
        }
        self.powered_off.notify_one();
        PowerOffResponse::new()
    }
}

//! The client of a VMM's control service (`vmm.proto`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use isopod_proto::vmm::{
    AddDiskRequest, AddNicRequest, AddVolumeRequest, CloseLogRequest, Disk, Nic, OpenLogRequest,
    RemoveDiskRequest, RemoveVolumeRequest, ReopenLogRequest, ResizeMemoryRequest, ShutDownRequest,
    StartRequest, StatusRequest, StatusResponse, WaitLogRequest, WaitMemoryRequest,
};
use isopod_proto::vmm_ttrpc::MachineClient;
use ttrpc::context::Context;

use super::error::{Peer, VmError};
use super::link::{Ended, Link};
use super::{CONTROL_SOCKET, socket};
use crate::id::ContainerId;

/// How long the VMM may take for anything but a wait: it is this host's own process.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a guest may take to grow that goes on doing so: less than callers wait for an answer.
const GROW_LIMIT: Duration = Duration::from_secs(100);

/// A VMM's control service.
#[derive(Debug)]
pub(super) struct Control {
    socket: PathBuf,
    link: Link,
}

impl Control {
    pub(super) fn new(dir: &Path, ended: Ended) -> Self {
        Self {
            socket: dir.join(CONTROL_SOCKET),
            link: Link::new(Peer::Vmm, ended),
        }
    }

    async fn client(&self) -> Result<MachineClient, VmError> {
        if let Some(client) = self.link.cached().await {
            return Ok(MachineClient::new(client));
        }
        let stream = socket::connect(&self.socket)
            .await
            .map_err(VmError::io("connecting to", &self.socket))?;
        let client = Link::client(stream);
        self.link.adopt(client.clone()).await;
        Ok(MachineClient::new(client))
    }

    pub(super) async fn start(&self, request: &StartRequest) -> Result<(), VmError> {
        let client = self.client().await?;
        let answer = client.start(Context::default(), request);
        self.link.call("Start", Some(LIMIT), answer).await.map(drop)
    }

    pub(super) async fn status(&self) -> Result<StatusResponse, VmError> {
        let client = self.client().await?;
        let request = StatusRequest::new();
        self.link
            .call(
                "Status",
                Some(LIMIT),
                client.status(Context::default(), &request),
            )
            .await
    }

    pub(super) async fn add_disk(&self, disk: Disk) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = AddDiskRequest {
            disk: Some(disk).into(),
            ..Default::default()
        };
        let answer = client.add_disk(Context::default(), &request);
        self.link
            .call("AddDisk", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn add_nic(&self, nic: Nic) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = AddNicRequest {
            nic: Some(nic).into(),
            ..Default::default()
        };
        let answer = client.add_nic(Context::default(), &request);
        self.link
            .call("AddNic", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn remove_disk(&self, serial: &str) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = RemoveDiskRequest {
            serial: serial.to_owned(),
            ..Default::default()
        };
        let answer = client.remove_disk(Context::default(), &request);
        self.link
            .call("RemoveDisk", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn add_volume(
        &self,
        name: &str,
        descriptor: &str,
        read_only: bool,
    ) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = AddVolumeRequest {
            name: name.to_owned(),
            descriptor: descriptor.to_owned(),
            read_only,
            ..Default::default()
        };
        let answer = client.add_volume(Context::default(), &request);
        self.link
            .call("AddVolume", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn remove_volume(&self, name: &str) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = RemoveVolumeRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        let answer = client.remove_volume(Context::default(), &request);
        self.link
            .call("RemoveVolume", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn resize_memory(&self, memory_mib: u32) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = ResizeMemoryRequest {
            memory_mib,
            ..Default::default()
        };
        let answer = client.resize_memory(Context::default(), &request);
        self.link
            .call("ResizeMemory", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    /// What the guest has plugged, in MiB.
    pub(super) async fn wait_memory(&self, patience: Duration) -> Result<u32, VmError> {
        let client = self.client().await?;
        let request = WaitMemoryRequest {
            patience_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let answer = client.wait_memory(Context::default(), &request);
        self.link
            .call("WaitMemory", Some(GROW_LIMIT), answer)
            .await
            .map(|answer| answer.plugged_memory_mib)
    }

    pub(super) async fn open_log(&self, id: &ContainerId, descriptor: &str) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = OpenLogRequest {
            container_id: id.to_string(),
            descriptor: descriptor.to_owned(),
            ..Default::default()
        };
        let answer = client.open_log(Context::default(), &request);
        self.link
            .call("OpenLog", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn reopen_log(
        &self,
        id: &ContainerId,
        descriptor: &str,
    ) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = ReopenLogRequest {
            container_id: id.to_string(),
            descriptor: descriptor.to_owned(),
            ..Default::default()
        };
        let answer = client.reopen_log(Context::default(), &request);
        self.link
            .call("ReopenLog", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    /// Whether the container's output has ended and is written, before `limit`.
    pub(super) async fn wait_log(
        &self,
        id: &ContainerId,
        limit: Duration,
    ) -> Result<bool, VmError> {
        let client = self.client().await?;
        let request = WaitLogRequest {
            container_id: id.to_string(),
            timeout_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let answer = client.wait_log(Context::default(), &request);
        self.link
            .call("WaitLog", Some(limit + LIMIT), answer)
            .await
            .map(|answer| answer.ended)
    }

    pub(super) async fn close_log(&self, id: &ContainerId) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = CloseLogRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = client.close_log(Context::default(), &request);
        self.link
            .call("CloseLog", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn shut_down(&self) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = ShutDownRequest::new();
        let answer = client.shut_down(Context::default(), &request);
        self.link
            .call("ShutDown", Some(LIMIT), answer)
            .await
            .map(drop)
    }
}

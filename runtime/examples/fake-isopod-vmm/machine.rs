//! What a VMM answers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use isopod_proto::vmm::{
    AddDiskRequest, AddDiskResponse, AddNicRequest, AddNicResponse, CloseLogRequest,
    CloseLogResponse, OpenLogRequest, OpenLogResponse, RemoveDiskRequest, RemoveDiskResponse,
    ReopenLogRequest, ReopenLogResponse, ShutDownRequest, ShutDownResponse, StartRequest,
    StartResponse, StatusRequest, StatusResponse, WaitLogRequest, WaitLogResponse,
};
use isopod_proto::vmm_ttrpc::Machine;
use tokio::sync::watch;
use ttrpc::Code;
use ttrpc::asynchronous::TtrpcContext;

use super::log::{Log, write_log};
use super::{Reply, Served, lock, refuse};

#[async_trait::async_trait]
impl Machine for Served {
    async fn start(&self, _: &TtrpcContext, _: StartRequest) -> Reply<StartResponse> {
        Ok(StartResponse::new())
    }

    async fn status(&self, _: &TtrpcContext, _: StatusRequest) -> Reply<StatusResponse> {
        let disks = lock(&self.0.disks).iter().cloned().collect();
        Ok(StatusResponse {
            vmm_version: "fake".into(),
            disks,
            nics: lock(&self.0.nics)
                .iter()
                .map(|(name, _)| name.clone())
                .collect(),
            ..Default::default()
        })
    }

    async fn add_disk(&self, _: &TtrpcContext, request: AddDiskRequest) -> Reply<AddDiskResponse> {
        let disk = request.disk.unwrap_or_default();
        for extent in &disk.extents {
            self.0.take_file(&extent.descriptor)?;
        }
        if !lock(&self.0.disks).insert(disk.serial) {
            return refuse(Code::ALREADY_EXISTS, "the serial is in use");
        }
        Ok(AddDiskResponse::new())
    }

    async fn add_nic(&self, _: &TtrpcContext, request: AddNicRequest) -> Reply<AddNicResponse> {
        let nic = request.nic.unwrap_or_default();
        let mut queues = Vec::new();
        for descriptor in &nic.descriptors {
            queues.extend(self.0.take_file(descriptor)?);
        }
        lock(&self.0.nics).push((nic.name, queues));
        Ok(AddNicResponse::new())
    }

    async fn remove_disk(
        &self,
        _: &TtrpcContext,
        request: RemoveDiskRequest,
    ) -> Reply<RemoveDiskResponse> {
        lock(&self.0.disks).remove(&request.serial);
        Ok(RemoveDiskResponse::new())
    }

    async fn open_log(&self, _: &TtrpcContext, request: OpenLogRequest) -> Reply<OpenLogResponse> {
        let process = self.0.process(&request.container_id, "")?;
        let Some(output) = lock(&process.output).take() else {
            return refuse(Code::FAILED_PRECONDITION, "somebody reads the output");
        };
        let file = Arc::new(Mutex::new(self.0.take_file(&request.descriptor)?));
        let (sender, ended) = watch::channel(false);
        tokio::spawn(write_log(output, Arc::clone(&file), sender));
        lock(&self.0.logs).insert(request.container_id, Log { file, ended });
        Ok(OpenLogResponse::new())
    }

    async fn reopen_log(
        &self,
        _: &TtrpcContext,
        request: ReopenLogRequest,
    ) -> Reply<ReopenLogResponse> {
        let file = self.0.take_file(&request.descriptor)?;
        match lock(&self.0.logs).get(&request.container_id) {
            Some(log) => *lock(&log.file) = file,
            None => return refuse(Code::NOT_FOUND, "no such log"),
        }
        Ok(ReopenLogResponse::new())
    }

    async fn wait_log(&self, _: &TtrpcContext, request: WaitLogRequest) -> Reply<WaitLogResponse> {
        let ended = lock(&self.0.logs)
            .get(&request.container_id)
            .map(|log| log.ended.clone());
        let Some(mut ended) = ended else {
            return refuse(Code::NOT_FOUND, "no such log");
        };
        let limit = Duration::from_millis(request.timeout_ms.into());
        let ended = tokio::time::timeout(limit, ended.wait_for(|ended| *ended))
            .await
            .is_ok();
        Ok(WaitLogResponse {
            ended,
            ..Default::default()
        })
    }

    async fn close_log(
        &self,
        _: &TtrpcContext,
        request: CloseLogRequest,
    ) -> Reply<CloseLogResponse> {
        lock(&self.0.logs).remove(&request.container_id);
        Ok(CloseLogResponse::new())
    }

    async fn shut_down(&self, _: &TtrpcContext, _: ShutDownRequest) -> Reply<ShutDownResponse> {
        self.0.end("shut-down")
    }
}

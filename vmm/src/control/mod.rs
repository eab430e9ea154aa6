//! The control service: what the daemon asks of this VMM, over ttrpc (`vmm.proto`).
//!
//! One file per verb. All run on the control thread, one at a time but for their awaits, and lock
//! the machine only between those. The guest's end, whatever its cause, arrives in `main`, which
//! owns what comes after.

mod add_disk;
mod add_nic;
mod add_volume;
mod close_log;
mod disk;
mod error;
mod open_log;
mod pause;
mod remove_disk;
mod remove_volume;
mod reopen_log;
mod resize_memory;
mod resume;
mod shut_down;
mod start;
mod status;
mod wait_log;
mod wait_memory;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use isopod_proto::vmm::{
    AddDiskRequest, AddDiskResponse, AddNicRequest, AddNicResponse, AddVolumeRequest,
    AddVolumeResponse, CloseLogRequest, CloseLogResponse, OpenLogRequest, OpenLogResponse,
    PauseRequest, PauseResponse, RemoveDiskRequest, RemoveDiskResponse, RemoveVolumeRequest,
    RemoveVolumeResponse, ReopenLogRequest, ReopenLogResponse, ResizeMemoryRequest,
    ResizeMemoryResponse, ResumeRequest, ResumeResponse, ShutDownRequest, ShutDownResponse,
    StartRequest, StartResponse, StatusRequest, StatusResponse, WaitLogRequest, WaitLogResponse,
    WaitMemoryRequest, WaitMemoryResponse,
};
use isopod_proto::vmm_ttrpc;
use tokio::sync::mpsc::UnboundedSender;
use tracing::Instrument;
use ttrpc::r#async::TtrpcContext;

pub(crate) use self::error::ControlError;
use crate::descriptors::Descriptors;
use crate::log::Logs;
use crate::machine::Machine;
use crate::machine::ending::Ending;
use crate::virtio::vsock::VsockHandle;

/// The machine's life, as the daemon sees it.
#[derive(Debug)]
enum Phase {
    /// Waiting for `Start`.
    Created,
    Running(Box<Running>),
    /// The guest has ended, or `Start` failed.
    Stopped,
}

#[derive(Debug)]
struct Running {
    machine: Machine,
    vsock: VsockHandle,
    logs: Arc<Logs>,
}

/// The service's state.
#[derive(Debug)]
pub(crate) struct Control {
    descriptors: Arc<Descriptors>,
    dir: PathBuf,
    ended: UnboundedSender<Ending>,
    phase: Mutex<Phase>,
}

impl Control {
    /// For the sandbox in `dir`. How the guest ends goes to `ended`.
    pub(crate) fn new(
        descriptors: Arc<Descriptors>,
        dir: PathBuf,
        ended: UnboundedSender<Ending>,
    ) -> Self {
        Self {
            descriptors,
            dir,
            ended,
            phase: Mutex::new(Phase::Created),
        }
    }

    /// Ends the vCPUs and takes the machine down; what containers still have to say is in the logs
    /// that it returns. No verb finds a machine any more.
    pub(crate) fn stop(&self) -> Option<Arc<Logs>> {
        match std::mem::replace(&mut *self.lock(), Phase::Stopped) {
            Phase::Running(running) => {
                let Running {
                    machine,
                    vsock,
                    logs,
                } = *running;
                drop(machine);
                drop(vsock);
                Some(logs)
            }
            Phase::Created | Phase::Stopped => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `action` on the running machine.
    fn with_running<T>(
        &self,
        action: impl FnOnce(&mut Running) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        match &mut *self.lock() {
            Phase::Running(running) => action(running),
            Phase::Created | Phase::Stopped => Err(ControlError::NotRunning),
        }
    }

    fn logs(&self) -> Result<Arc<Logs>, ControlError> {
        self.with_running(|running| Ok(Arc::clone(&running.logs)))
    }
}

/// Makes the service's methods from the verbs: a span, and the table from errors to codes.
macro_rules! verbs {
    ($($verb:ident($request:ty) -> $response:ty;)*) => {
        #[async_trait]
        impl vmm_ttrpc::Machine for Control {
            $(
                async fn $verb(
                    &self,
                    _: &TtrpcContext,
                    request: $request,
                ) -> ttrpc::Result<$response> {
                    let span = tracing::info_span!(stringify!($verb));
                    let answer = $verb::$verb(self, request).instrument(span).await;
                    Ok(answer?)
                }
            )*
        }
    };
}

verbs! {
    start(StartRequest) -> StartResponse;
    status(StatusRequest) -> StatusResponse;
    pause(PauseRequest) -> PauseResponse;
    resume(ResumeRequest) -> ResumeResponse;
    add_disk(AddDiskRequest) -> AddDiskResponse;
    add_nic(AddNicRequest) -> AddNicResponse;
    add_volume(AddVolumeRequest) -> AddVolumeResponse;
    remove_disk(RemoveDiskRequest) -> RemoveDiskResponse;
    open_log(OpenLogRequest) -> OpenLogResponse;
    remove_volume(RemoveVolumeRequest) -> RemoveVolumeResponse;
    reopen_log(ReopenLogRequest) -> ReopenLogResponse;
    wait_log(WaitLogRequest) -> WaitLogResponse;
    resize_memory(ResizeMemoryRequest) -> ResizeMemoryResponse;
    wait_memory(WaitMemoryRequest) -> WaitMemoryResponse;
    close_log(CloseLogRequest) -> CloseLogResponse;
    shut_down(ShutDownRequest) -> ShutDownResponse;
}

//! The agent's service: one verb, one file.
//!
//! Each verb is a task on the runtime's one thread. A verb that changes something is finished even
//! if its caller goes away in the middle of it ([`AgentService::finish`]): a daemon that is killed
//! must not leave half a container. A container's verbs are kept apart by its lock (see
//! [`crate::container`]); different containers do not wait for each other.
//!
//! ```text
//!  Hello ──> SetUpSandbox ──> CreateContainer ──> StartContainer ──> WaitProcess ──> DeleteContainer
//!                                   │                  ├─ ExecProcess ─ WaitProcess ─ DeleteProcess
//!                                   └── SignalProcess ─┘
//!            PowerOff at any time
//! ```
//!
//! Errors become status codes in one table ([`error`]).

mod create_container;
mod delete_container;
mod delete_process;
mod error;
mod exec_process;
mod hello;
mod list_containers;
mod power_off;
mod replay_changes;
mod set_processors;
mod set_up_sandbox;
mod signal_process;
mod start_container;
mod stats;
mod update_container;
mod use_memory;
mod wait_process;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use isopod_proto::agent::{
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest,
    DeleteContainerResponse, DeleteProcessRequest, DeleteProcessResponse, ExecProcessRequest,
    ExecProcessResponse, HelloRequest, HelloResponse, ListContainersRequest,
    ListContainersResponse, PowerOffRequest, PowerOffResponse, ReplayChangesRequest,
    ReplayChangesResponse, SetProcessorsRequest, SetProcessorsResponse, SetUpSandboxRequest,
    SetUpSandboxResponse, SignalProcessRequest, SignalProcessResponse, StartContainerRequest,
    StartContainerResponse, StatsRequest, StatsResponse, UpdateContainerRequest,
    UpdateContainerResponse, UseMemoryRequest, UseMemoryResponse, WaitProcessRequest,
    WaitProcessResponse,
};
use isopod_proto::agent_ttrpc::Agent;
use nix::unistd::Pid;
use tokio::sync::{Mutex, Notify, OnceCell};
use tracing::Instrument;
use ttrpc::asynchronous::TtrpcContext;

use error::AgentError;
pub(crate) use error::chain;

use crate::container::{ContainerId, Containers};
use crate::helper::RuntimeRequest;
use crate::process::Reaper;
use crate::storage::{Disks, Scratch, Volumes};
use crate::user_namespace::Users;

/// Where the agent runs, and all that it knows about it.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Folder for everything that the agent puts on disk.
    pub(crate) state_dir: PathBuf,
    /// Where disks come from.
    pub(crate) disks: Disks,
    /// Where volumes come from.
    pub(crate) volumes: Volumes,
    /// Parent of the containers' cgroups, absolute in the hierarchy.
    pub(crate) cgroup: PathBuf,
    /// Makes the kernel look for devices that were added. May block.
    pub(crate) search_bus: fn() -> io::Result<()>,
    /// What is to be done before the sandbox is set up, and what it asks for can override.
    pub(crate) before_set_up: fn(),
    /// Brings up so many processors, or takes others down; answers how many are up. May block.
    pub(crate) set_processors: fn(u32) -> u32,
    /// Lets the kernel use memory that is added from now on. May block.
    pub(crate) use_memory: fn() -> io::Result<()>,
    /// What is to be done once there is a sandbox. May block.
    pub(crate) after_set_up: fn(),
}

/// The agent.
#[derive(Debug)]
pub(crate) struct AgentService {
    surroundings: Surroundings,
    reaper: Arc<Reaper>,
    containers: Arc<Containers>,
    /// The writable disk, once the sandbox is set up.
    scratch: Mutex<Option<Scratch>>,
    /// PID 1 of the shared pid namespace, once a container wanted it or there is a user namespace.
    pid_namespace: OnceCell<Pid>,
    /// The user namespace of the containers, if the sandbox was set up with one.
    users: OnceLock<Users>,
    /// Told when everything has ended and the machine, or the process, may.
    powered_off: Notify,
}

impl AgentService {
    /// Makes the service and the folders that it works in.
    ///
    /// # Errors
    ///
    /// When the folders cannot be made.
    pub(crate) fn new(surroundings: Surroundings, reaper: Arc<Reaper>) -> io::Result<Arc<Self>> {
        let service = Self {
            surroundings,
            reaper,
            containers: Arc::default(),
            scratch: Mutex::default(),
            pid_namespace: OnceCell::new(),
            users: OnceLock::new(),
            powered_off: Notify::new(),
        };
        for folder in ["containers", "runtime", "consoles", "sandbox"] {
            std::fs::create_dir_all(service.folder(folder))?;
        }
        Ok(Arc::new(service))
    }

    /// The containers, whose streams are served beside this.
    pub(crate) fn containers(&self) -> Arc<Containers> {
        Arc::clone(&self.containers)
    }

    /// Waits until the sandbox was powered off.
    pub(crate) async fn powered_off(&self) {
        self.powered_off.notified().await;
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.surroundings.state_dir.join(name)
    }

    /// The folder of a container's mount points and bundle.
    fn container_folder(&self, id: &ContainerId) -> PathBuf {
        self.folder("containers").join(id.as_str())
    }

    /// The container as libcontainer finds it.
    fn runtime(&self, id: &ContainerId) -> RuntimeRequest {
        RuntimeRequest {
            root: self.folder("runtime"),
            container_id: id.to_string(),
        }
    }

    /// Runs a verb to its end, whether or not its caller waits for it.
    async fn finish<T: Send + 'static>(
        verb: impl Future<Output = Result<T, AgentError>> + Send + 'static,
    ) -> ttrpc::Result<T> {
        let result = tokio::spawn(verb.in_current_span()).await;
        Ok(result.unwrap_or(Err(AgentError::GivenUp))?)
    }
}

/// Writes a file of the agent's own.
fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<(), AgentError> {
    std::fs::write(path, text).map_err(AgentError::file(path))
}

/// What ttrpc serves: a shared handle, since verbs outlive their calls.
#[derive(Debug, Clone)]
pub(crate) struct Served(pub(crate) Arc<AgentService>);

#[async_trait]
impl Agent for Served {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        Ok(AgentService::hello(&request)?)
    }

    async fn set_up_sandbox(
        &self,
        _: &TtrpcContext,
        request: SetUpSandboxRequest,
    ) -> ttrpc::Result<SetUpSandboxResponse> {
        let service = Arc::clone(&self.0);
        AgentService::finish(async move { service.set_up_sandbox(request).await }).await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let service = Arc::clone(&self.0);
        AgentService::finish(async move { service.create_container(request).await }).await
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        let service = Arc::clone(&self.0);
        AgentService::finish(async move { service.start_container(request).await }).await
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<ExecProcessResponse> {
        let service = Arc::clone(&self.0);
        AgentService::finish(async move { service.exec_process(request).await }).await
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        let service = Arc::clone(&self.0);
        AgentService::finish(async move { service.update_container(request).await }).await
    }

    async fn set_processors(
        &self,
        _: &TtrpcContext,
        request: SetProcessorsRequest,
    ) -> ttrpc::Result<SetProcessorsResponse> {
        let service = Arc::clone(&self.0);
        AgentService::finish(async move { service.set_processors(request).await }).await
    }

    async fn use_memory(
        &self,
        _: &TtrpcContext,
        _: UseMemoryRequest,
    ) -> ttrpc::Result<UseMemoryResponse> {
        Ok(self.0.use_memory().await?)
    }

    async fn replay_changes(
        &self,
        _: &TtrpcContext,
        request: ReplayChangesRequest,
    ) -> ttrpc::Result<ReplayChangesResponse> {
        Ok(self.0.replay_changes(request).await?)
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<SignalProcessResponse> {
        Ok(self.0.signal_process(&request)?)
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        Ok(self.0.wait_process(&request).await?)
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: DeleteProcessRequest,
    ) -> ttrpc::Result<DeleteProcessResponse> {
        Ok(self.0.delete_process(&request)?)
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: DeleteContainerRequest,
    ) -> ttrpc::Result<DeleteContainerResponse> {
        let service = Arc::clone(&self.0);
        AgentService::finish(async move { service.delete_container(request).await }).await
    }

    async fn list_containers(
        &self,
        _: &TtrpcContext,
        _: ListContainersRequest,
    ) -> ttrpc::Result<ListContainersResponse> {
        Ok(self.0.list_containers())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        Ok(self.0.stats(&request).await?)
    }

    async fn power_off(
        &self,
        _: &TtrpcContext,
        _: PowerOffRequest,
    ) -> ttrpc::Result<PowerOffResponse> {
        let service = Arc::clone(&self.0);
        AgentService::finish(async move { Ok(service.power_off().await) }).await
    }
}

//! What an agent answers.

use isopod_proto::AGENT_PROTOCOL_VERSION;
use isopod_proto::agent::{
    CgroupStats, ContainerInfo, ContainerState, ContainerStats, CpuStats, CreateContainerRequest,
    CreateContainerResponse, DeleteContainerRequest, DeleteContainerResponse, DeleteProcessRequest,
    DeleteProcessResponse, ExecProcessRequest, ExecProcessResponse, HelloRequest, HelloResponse,
    ListContainersRequest, ListContainersResponse, MemoryStats, PowerOffRequest, PowerOffResponse,
    SetUpSandboxRequest, SetUpSandboxResponse, SignalProcessRequest, SignalProcessResponse,
    StartContainerRequest, StartContainerResponse, StatsRequest, StatsResponse, WaitProcessRequest,
    WaitProcessResponse,
};
use isopod_proto::agent_ttrpc::Agent;
use ttrpc::Code;
use ttrpc::asynchronous::TtrpcContext;

use ttrpc::error::get_rpc_status;

use super::process::{Asked, Process};
use super::{Reply, Served, lock, now_ns, refuse};

#[async_trait::async_trait]
impl Agent for Served {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> Reply<HelloResponse> {
        let protocol_version = AGENT_PROTOCOL_VERSION;
        Ok(HelloResponse {
            protocol_version,
            agent_version: "fake".into(),
            ..Default::default()
        })
    }

    async fn set_up_sandbox(
        &self,
        _: &TtrpcContext,
        request: SetUpSandboxRequest,
    ) -> Reply<SetUpSandboxResponse> {
        if request.hostname == "mute" {
            std::future::pending::<()>().await;
        }
        *lock(&self.0.hostname) = request.hostname;
        Ok(SetUpSandboxResponse::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Reply<CreateContainerResponse> {
        if self.0.hostname_is("full") {
            return refuse(Code::RESOURCE_EXHAUSTED, "no room");
        }
        if self.0.hostname_is("frozen") {
            std::future::pending::<()>().await;
        }
        let serial = request.rootfs.unwrap_or_default().disk_serial;
        if !lock(&self.0.disks).contains(&serial) {
            return refuse(Code::NOT_FOUND, "no such disk");
        }
        let spec: serde_json::Value = serde_json::from_slice(&request.spec)
            .map_err(|error| get_rpc_status(Code::INVALID_ARGUMENT, error))?;
        let args = serde_json::from_value(spec["process"]["args"].clone())
            .map_err(|error| get_rpc_status(Code::INVALID_ARGUMENT, error))?;
        let asked = Asked {
            args,
            terminal: spec["process"]["terminal"] == true,
            stdin: request.stdin,
        };
        self.0.add(&request.container_id, "", Process::new(asked));
        Ok(CreateContainerResponse {
            uid: 33,
            gid: 34,
            ..Default::default()
        })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> Reply<StartContainerResponse> {
        self.0.process(&request.container_id, "")?.start().await?;
        Ok(StartContainerResponse::new())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> Reply<ExecProcessResponse> {
        let process = Process::new(Asked {
            args: request.args,
            terminal: request.terminal,
            stdin: request.stdin,
        });
        process.start().await?;
        self.0.add(&request.container_id, &request.exec_id, process);
        Ok(ExecProcessResponse::new())
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> Reply<SignalProcessResponse> {
        self.0
            .process(&request.container_id, &request.exec_id)?
            .signal(request.signal);
        Ok(SignalProcessResponse::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> Reply<WaitProcessResponse> {
        let process = self.0.process(&request.container_id, &request.exec_id)?;
        let exit_code = process.wait().await;
        Ok(WaitProcessResponse {
            exit_code,
            exited_at_ns: now_ns(),
            ..Default::default()
        })
    }

    async fn delete_process(
        &self,
        _: &TtrpcContext,
        request: DeleteProcessRequest,
    ) -> Reply<DeleteProcessResponse> {
        lock(&self.0.processes).remove(&(request.container_id, request.exec_id));
        Ok(DeleteProcessResponse::new())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: DeleteContainerRequest,
    ) -> Reply<DeleteContainerResponse> {
        lock(&self.0.processes).retain(|(container, _), process| {
            let other = *container != request.container_id;
            if !other {
                process.signal(9);
            }
            other
        });
        Ok(DeleteContainerResponse::new())
    }

    async fn list_containers(
        &self,
        _: &TtrpcContext,
        _: ListContainersRequest,
    ) -> Reply<ListContainersResponse> {
        let mut containers = Vec::new();
        for ((container_id, exec), process) in lock(&self.0.processes).iter() {
            let state = match (*lock(&process.pid), *process.exit.borrow()) {
                (None, _) => ContainerState::CONTAINER_STATE_CREATED,
                (Some(_), None) => ContainerState::CONTAINER_STATE_RUNNING,
                (Some(_), Some(_)) => ContainerState::CONTAINER_STATE_EXITED,
            };
            if exec.is_empty() {
                let (container_id, state) = (container_id.clone(), state.into());
                containers.push(ContainerInfo {
                    container_id,
                    state,
                    ..Default::default()
                });
            }
        }
        Ok(ListContainersResponse {
            containers,
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Reply<StatsResponse> {
        if self.0.hostname_is("sleepy") {
            std::future::pending::<()>().await;
        }
        let group = CgroupStats {
            cpu: Some(CpuStats {
                usage_us: 1,
                ..Default::default()
            })
            .into(),
            memory: Some(MemoryStats {
                usage: 4096,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let asked = |id: &str| request.container_id.is_empty() || request.container_id == id;
        let containers = lock(&self.0.processes)
            .keys()
            .filter(|(id, exec)| exec.is_empty() && asked(id))
            .map(|(id, _)| ContainerStats {
                container_id: id.clone(),
                cgroup: Some(group.clone()).into(),
                ..Default::default()
            })
            .collect();
        Ok(StatsResponse {
            at_ns: 1,
            sandbox: Some(group.clone()).into(),
            containers,
            ..Default::default()
        })
    }

    async fn power_off(&self, _: &TtrpcContext, _: PowerOffRequest) -> Reply<PowerOffResponse> {
        if self.0.hostname_is("stubborn") {
            std::future::pending::<()>().await;
        }
        self.0.end("power-off")
    }
}

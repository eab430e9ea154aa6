//! The client of the agent in the guest (`agent.proto`).
//!
//! Everything that comes back is hostile: ids are compared with the ones that were asked about,
//! numbers are brought into their ranges, and lists have a limit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isopod_proto::agent::{
    ContainerState, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest,
    DeleteProcessRequest, ExecProcessRequest, HelloRequest, ListContainersRequest, PowerOffRequest,
    ReplayChangesRequest, SetProcessorsRequest, SetUpSandboxRequest, SignalProcessRequest,
    StartContainerRequest, StreamOpen, UpdateContainerRequest, UseMemoryRequest,
    WaitProcessRequest,
};
use isopod_proto::agent_ttrpc::AgentClient;
use isopod_proto::{AGENT_PORT, AGENT_PROTOCOL_VERSION, STREAM_PORT};
use tokio::time::Instant;
use ttrpc::asynchronous::Client;
use ttrpc::context::Context;

use super::error::{Peer, VmError, printable};
use super::link::{Ended, Link};
use super::stats::{Ask, GuestStats};
use super::stream::ProcessStream;
use super::{ProcessExit, VSOCK_SOCKET, vsock};
use crate::clock;
use crate::id::{ContainerId, ExecId};

/// How long the guest may take for a call that starts or changes something.
const LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to pass on a signal.
const SIGNAL_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to say what it uses. Whoever asks, asks again.
const STATS_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to accept a connection and say hello, once it is up.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to unmount everything and leave.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts to reach a guest that boots.
const BOOT_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));
/// Most containers that an agent may claim to have.
const CONTAINERS_MAX: usize = 4096;
/// Most groups of a process (Linux `NGROUPS_MAX` is 65536; nobody means that).
const GROUPS_MAX: usize = 1024;

/// The agent of one guest.
#[derive(Debug)]
pub(super) struct Agent {
    socket: PathBuf,
    link: Link,
    ended: Ended,
}

impl Agent {
    pub(super) fn new(dir: &Path, ended: Ended) -> Self {
        Self {
            socket: dir.join(VSOCK_SOCKET),
            link: Link::new(Peer::Agent, ended.clone()),
            ended,
        }
    }

    /// Tries until the guest has booted and its agent answers.
    pub(super) async fn wait_until_up(&self, limit: Duration) -> Result<(), VmError> {
        let deadline = Instant::now() + limit;
        let attempts = async {
            let mut pause = BOOT_PAUSE.0;
            loop {
                match self.connect().await {
                    Ok(_client) => return Ok(()),
                    Err(error) if error.is_broken() => {}
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BOOT_PAUSE.1);
            }
        };
        tokio::select! {
            biased;
            result = tokio::time::timeout_at(deadline, attempts) => result.unwrap_or(
                Err(VmError::Timeout { peer: Peer::Agent, method: "Hello", limit }),
            ),
            end = self.ended.wait() => Err(VmError::Ended(end)),
        }
    }

    /// A new connection, greeted.
    async fn connect(&self) -> Result<Client, VmError> {
        let connecting = vsock::connect(&self.socket, AGENT_PORT);
        let stream = tokio::time::timeout(CONNECT_LIMIT, connecting)
            .await
            .unwrap_or_else(|_elapsed| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(VmError::io(
                "connecting to the guest's agent through",
                &self.socket,
            ))?;
        let client = Link::client(stream);
        let request = HelloRequest {
            protocol_version: AGENT_PROTOCOL_VERSION,
            daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        };
        let agent = AgentClient::new(client.clone());
        let greeting = agent.hello(Context::default(), &request);
        let answer = match tokio::time::timeout(CONNECT_LIMIT, greeting).await {
            Ok(answer) => answer.map_err(|error| VmError::rpc(Peer::Agent, "Hello", &error))?,
            Err(_elapsed) => {
                let (peer, method, limit) = (Peer::Agent, "Hello", CONNECT_LIMIT);
                return Err(VmError::Timeout {
                    peer,
                    method,
                    limit,
                });
            }
        };
        if answer.protocol_version != AGENT_PROTOCOL_VERSION {
            return Err(VmError::AgentVersion {
                agent: printable(&answer.agent_version),
                theirs: answer.protocol_version,
                ours: AGENT_PROTOCOL_VERSION,
            });
        }
        self.link.adopt(client.clone()).await;
        Ok(client)
    }

    async fn client(&self) -> Result<AgentClient, VmError> {
        if let Some(end) = self.ended.now() {
            return Err(VmError::Ended(end));
        }
        let client = match self.link.cached().await {
            Some(client) => client,
            None => self.connect().await?,
        };
        Ok(AgentClient::new(client))
    }

    pub(super) async fn set_up_sandbox(
        &self,
        request: &SetUpSandboxRequest,
    ) -> Result<(), VmError> {
        let client = self.client().await?;
        let answer = client.set_up_sandbox(Context::default(), request);
        self.link
            .call("SetUpSandbox", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn create_container(
        &self,
        request: &CreateContainerRequest,
    ) -> Result<CreateContainerResponse, VmError> {
        let client = self.client().await?;
        let answer = client.create_container(Context::default(), request);
        let answer = self
            .link
            .call("CreateContainer", Some(LIMIT), answer)
            .await?;
        if answer.supplemental_groups.len() > GROUPS_MAX {
            return Err(bad_reply("CreateContainer", "too many groups"));
        }
        Ok(answer)
    }

    pub(super) async fn start_container(&self, id: &ContainerId) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = StartContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = client.start_container(Context::default(), &request);
        self.link
            .call("StartContainer", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn exec_process(&self, request: &ExecProcessRequest) -> Result<(), VmError> {
        let client = self.client().await?;
        let answer = client.exec_process(Context::default(), request);
        self.link
            .call("ExecProcess", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    /// `all`: every process of the container.
    pub(super) async fn signal(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        signal: i32,
        all: bool,
    ) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = SignalProcessRequest {
            container_id: id.to_string(),
            exec_id: text(exec),
            signal,
            all,
            ..Default::default()
        };
        let answer = client.signal_process(Context::default(), &request);
        self.link
            .call("SignalProcess", Some(SIGNAL_LIMIT), answer)
            .await
            .map(drop)
    }

    /// Waits for as long as the process runs.
    pub(super) async fn wait(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<ProcessExit, VmError> {
        let client = self.client().await?;
        let request = WaitProcessRequest {
            container_id: id.to_string(),
            exec_id: text(exec),
            ..Default::default()
        };
        let answer = client.wait_process(Context::default(), &request);
        let answer = self.link.call("WaitProcess", None, answer).await?;
        Ok(ProcessExit {
            code: answer.exit_code.clamp(0, 255),
            at_ns: answer.exited_at_ns.clamp(0, clock::now_ns()),
            oom_killed: answer.oom_killed,
        })
    }

    pub(super) async fn delete_process(
        &self,
        id: &ContainerId,
        exec: &ExecId,
    ) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = DeleteProcessRequest {
            container_id: id.to_string(),
            exec_id: exec.to_string(),
            ..Default::default()
        };
        let answer = client.delete_process(Context::default(), &request);
        self.link
            .call("DeleteProcess", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn update_container(
        &self,
        request: &UpdateContainerRequest,
    ) -> Result<(), VmError> {
        let client = self.client().await?;
        let answer = client.update_container(Context::default(), request);
        self.link
            .call("UpdateContainer", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn set_processors(&self, count: u32) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = SetProcessorsRequest {
            count,
            ..Default::default()
        };
        let answer = client.set_processors(Context::default(), &request);
        self.link
            .call("SetProcessors", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn use_memory(&self) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = UseMemoryRequest::new();
        let answer = client.use_memory(Context::default(), &request);
        self.link
            .call("UseMemory", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn replay_changes(
        &self,
        request: &ReplayChangesRequest,
    ) -> Result<(), VmError> {
        let client = self.client().await?;
        let answer = client.replay_changes(Context::default(), request);
        self.link
            .call("ReplayChanges", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn delete_container(&self, id: &str) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = DeleteContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let answer = client.delete_container(Context::default(), &request);
        self.link
            .call("DeleteContainer", Some(LIMIT), answer)
            .await
            .map(drop)
    }

    /// The containers that the agent has, and whether each has been started.
    pub(super) async fn list_containers(&self) -> Result<BTreeMap<ContainerId, bool>, VmError> {
        let client = self.client().await?;
        let request = ListContainersRequest::new();
        let answer = client.list_containers(Context::default(), &request);
        let answer = self
            .link
            .call("ListContainers", Some(LIMIT), answer)
            .await?;
        if answer.containers.len() > CONTAINERS_MAX {
            return Err(bad_reply("ListContainers", "too many containers"));
        }
        let mut containers = BTreeMap::new();
        for container in answer.containers {
            let id = container.container_id.parse::<ContainerId>();
            let id = id.map_err(|_error| bad_reply("ListContainers", "an id that is none"))?;
            let started = match container.state.enum_value() {
                Ok(ContainerState::CONTAINER_STATE_CREATED) => false,
                Ok(
                    ContainerState::CONTAINER_STATE_RUNNING
                    | ContainerState::CONTAINER_STATE_EXITED,
                ) => true,
                Ok(ContainerState::CONTAINER_STATE_UNSPECIFIED) | Err(_) => {
                    return Err(bad_reply("ListContainers", "a state that is none"));
                }
            };
            containers.insert(id, started);
        }
        Ok(containers)
    }

    pub(super) async fn stats(&self, ask: Ask<'_>) -> Result<GuestStats, VmError> {
        let request = ask.request();
        // To connect to a guest that hangs takes long, too.
        let asked = tokio::time::timeout(STATS_LIMIT, async {
            let client = self.client().await?;
            let answer = client.stats(Context::default(), &request);
            self.link.call("Stats", Some(STATS_LIMIT), answer).await
        });
        let answer = asked.await.unwrap_or(Err(VmError::Timeout {
            peer: Peer::Agent,
            method: "Stats",
            limit: STATS_LIMIT,
        }));
        GuestStats::check(answer?)
    }

    /// Asks the guest to leave. That it did is for the caller to see: the answer may never come.
    pub(super) async fn power_off(&self) -> Result<(), VmError> {
        let client = self.client().await?;
        let request = PowerOffRequest::new();
        let answer = client.power_off(Context::default(), &request);
        self.link
            .call("PowerOff", Some(POWER_OFF_LIMIT), answer)
            .await
            .map(drop)
    }

    pub(super) async fn open_stream(&self, request: &StreamOpen) -> Result<ProcessStream, VmError> {
        let opening = async {
            let connection =
                vsock::connect(&self.socket, STREAM_PORT)
                    .await
                    .map_err(VmError::io(
                        "connecting to the guest's streams through",
                        &self.socket,
                    ))?;
            Ok(ProcessStream::open(connection, request).await?)
        };
        tokio::select! {
            biased;
            opened = tokio::time::timeout(CONNECT_LIMIT, opening) => opened.unwrap_or(
                Err(VmError::Timeout { peer: Peer::Agent, method: "Open", limit: CONNECT_LIMIT }),
            ),
            end = self.ended.wait() => Err(VmError::Ended(end)),
        }
    }
}

fn text(exec: Option<&ExecId>) -> String {
    exec.map(ExecId::to_string).unwrap_or_default()
}

pub(super) fn bad_reply(method: &'static str, reason: &'static str) -> VmError {
    VmError::BadReply {
        peer: Peer::Agent,
        method,
        reason,
    }
}

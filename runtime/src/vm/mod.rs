//! A sandbox's virtual machine, seen from the daemon.
//!
//! A [`Vm`] holds the VMM's process by its pidfd and talks to three sockets in the sandbox's folder:
//! the VMM's control service, its descriptor socket, and its vsock, through which the agent in the
//! guest is reached and the streams of its processes. `sandbox` makes, adopts and ends machines;
//! `container` works with the agent and the disks of one. Everything here is asynchronous and may
//! be called from any task.
//!
//! ```text
//!   launch ──> boot ──> wait_for_agent ──> (in use) ──> end ──> ended
//!                                             ^                   ^
//!   adopt ────────────────────────────────────┘   killed, crashed │
//!             └───────────────────────────────────────────────────┘
//! ```
//!
//! The daemon's own child and a VMM that an earlier daemon started are the same thing here: a
//! pidfd. One task per machine waits for it, reads the VMM's last words and tells everybody.

mod agent;
mod control;
mod descriptors;
mod end;
mod error;
mod link;
mod process;
mod socket;
mod spawn;
mod stats;
mod stream;
mod vsock;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isopod_proto::agent::{
    CreateContainerRequest, CreateContainerResponse, ExecProcessRequest, ReplayChangesRequest,
    SetUpSandboxRequest, StreamOpen, StreamRole, UpdateContainerRequest,
};
use isopod_proto::vmm::{Disk, StartRequest, StatusResponse};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, watch};

use self::agent::Agent;
use self::control::Control;
pub(crate) use self::end::{EndReason, VmEnd};
pub(crate) use self::error::{Peer, Refusal, VmError};
use self::link::Ended;
use self::process::VmmProcess;
pub(crate) use self::process::{ProcessId, find_vmms};
pub(crate) use self::spawn::Launch;
pub(crate) use self::stats::{Ask, GuestStats};
pub(crate) use self::stream::{Output, ProcessInput, ProcessOutput, ProcessStream, StreamError};
use crate::id::{ContainerId, ExecId};
use crate::network::Nic;

/// The control service's socket, in the sandbox's folder.
const CONTROL_SOCKET: &str = "control.sock";
/// The descriptor socket.
const DESCRIPTORS_SOCKET: &str = "descriptors.sock";
/// The vsock's host side.
const VSOCK_SOCKET: &str = "vsock.sock";

/// How long a guest may take from the agreement to power off until its VMM has gone.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(10);
/// How long a VMM may take from the agreement to shut down until it has gone.
const SHUT_DOWN_LIMIT: Duration = Duration::from_secs(5);
/// How long the kernel may take to end a killed process.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How a process in the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessExit {
    /// 0 to 255; 128 plus the number for a process that a signal killed.
    pub(crate) code: i32,
    /// When, nanoseconds since the epoch, by the guest's clock and never in the host's future.
    pub(crate) at_ns: i64,
    /// The kernel killed a process of the container because memory ran out.
    pub(crate) oom_killed: bool,
}

/// A running, or ended, virtual machine.
#[derive(Debug)]
pub(crate) struct Vm {
    dir: PathBuf,
    process: Arc<VmmProcess>,
    control: Control,
    agent: Agent,
    ended: Ended,
    bus: RwLock<()>,
}

impl Vm {
    /// Starts a VMM in the existing folder `dir`. No vCPU runs yet.
    ///
    /// # Errors
    ///
    /// When a socket, a file or the process cannot be made.
    pub(crate) async fn launch(dir: PathBuf, launch: Launch) -> Result<Self, VmError> {
        let at = dir.clone();
        let process = tokio::task::spawn_blocking(move || spawn::spawn(&at, launch))
            .await
            .unwrap_or_else(|error| {
                Err(VmError::io("starting a VMM in", &dir)(
                    std::io::Error::other(error),
                ))
            })?;
        Ok(Self::new(dir, process))
    }

    /// Takes hold of the machine of an earlier daemon; `None` when it has ended.
    ///
    /// # Errors
    ///
    /// When the kernel does not let its process be watched.
    pub(crate) fn adopt(dir: PathBuf, id: ProcessId) -> Result<Option<Self>, VmError> {
        let process =
            VmmProcess::of_record(id).map_err(VmError::io("watching the VMM of", &dir))?;
        Ok(process.map(|process| Self::new(dir, process)))
    }

    fn new(dir: PathBuf, process: VmmProcess) -> Self {
        let process = Arc::new(process);
        let (sender, receiver) = watch::channel(None);
        let (watched, at) = (Arc::clone(&process), dir.clone());
        tokio::spawn(async move {
            watched.ended().await;
            let read = tokio::task::spawn_blocking(move || VmEnd::read(&at)).await;
            sender.send_replace(Some(read.unwrap_or_else(|_lost| VmEnd::killed())));
        });
        let ended = Ended::new(receiver);
        Self {
            control: Control::new(&dir, ended.clone()),
            agent: Agent::new(&dir, ended.clone()),
            dir,
            process,
            ended,
            bus: RwLock::default(),
        }
    }

    /// Leave to have the guest search its bus, for as long as the guard is there.
    ///
    /// A search finds whatever the VMM has on the bus: also a disk that the agent has just let go and
    /// that the VMM is about to take away, of which the guest would then wait for answers for ever.
    pub(crate) async fn searching_bus(&self) -> RwLockReadGuard<'_, ()> {
        self.bus.read().await
    }

    /// Leave to take disks off the bus: nobody searches it while the guard is there.
    pub(crate) async fn clearing_bus(&self) -> RwLockWriteGuard<'_, ()> {
        self.bus.write().await
    }

    /// What an earlier daemon's machine left as its last words. Blocking.
    pub(crate) fn last_words(dir: &Path) -> VmEnd {
        VmEnd::read(dir)
    }

    /// What tells the VMM's process from all others.
    pub(crate) fn process_id(&self) -> ProcessId {
        self.process.id()
    }

    /// How the machine ended, if it has.
    pub(crate) fn end_now(&self) -> Option<VmEnd> {
        self.ended.now()
    }

    /// Waits for the machine's end.
    pub(crate) async fn ended(&self) -> VmEnd {
        self.ended.wait().await
    }

    /// Builds the machine and lets its first vCPU run.
    ///
    /// # Errors
    ///
    /// When the VMM refuses: no KVM, a kernel that is none, too little memory.
    pub(crate) async fn boot(&self, request: &StartRequest) -> Result<(), VmError> {
        self.control.start(request).await
    }

    /// Waits until the agent in the guest answers.
    ///
    /// # Errors
    ///
    /// When it does not within `limit`, speaks another protocol version, or the machine ends.
    pub(crate) async fn wait_for_agent(&self, limit: Duration) -> Result<(), VmError> {
        self.agent.wait_until_up(limit).await
    }

    /// What the VMM says about itself.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub(crate) async fn status(&self) -> Result<StatusResponse, VmError> {
        self.control.status().await
    }

    /// Sends descriptors to the VMM, each under its name.
    ///
    /// # Errors
    ///
    /// When the VMM does not take one of them.
    pub(crate) async fn send(&self, files: Vec<(String, OwnedFd)>) -> Result<(), VmError> {
        let path = self.dir.join(DESCRIPTORS_SOCKET);
        let at = path.clone();
        tokio::task::spawn_blocking(move || descriptors::send(&at, &files))
            .await
            .unwrap_or_else(|error| {
                Err(VmError::io("sending through", path)(std::io::Error::other(
                    error,
                )))
            })
    }

    /// Puts a disk on the guest's bus; its descriptors have been sent.
    ///
    /// # Errors
    ///
    /// When the serial is in use or the bus is full.
    pub(crate) async fn add_disk(&self, disk: Disk) -> Result<(), VmError> {
        self.control.add_disk(disk).await
    }

    /// Puts a network interface on the guest's bus.
    ///
    /// # Errors
    ///
    /// When its name is in use, the bus is full, or a queue is not a tap's.
    pub(crate) async fn add_nic(&self, nic: Nic) -> Result<(), VmError> {
        let Nic {
            interface,
            queues,
            bandwidth,
        } = nic;
        let mut message = isopod_proto::vmm::Nic {
            mac: interface.mac,
            mtu: interface.mtu,
            to_guest_bits_per_s: bandwidth.ingress,
            from_guest_bits_per_s: bandwidth.egress,
            ..Default::default()
        };
        let mut files = Vec::with_capacity(queues.len());
        for (number, queue) in queues.into_iter().enumerate() {
            let descriptor = format!("nic-{}-{number}", interface.name);
            message.descriptors.push(descriptor.clone());
            files.push((descriptor, queue));
        }
        message.name = interface.name;
        self.send(files).await?;
        self.control.add_nic(message).await
    }

    /// Takes a disk off the bus, with [`clearing_bus`](Self::clearing_bus) held. Idempotent.
    ///
    /// # Errors
    ///
    /// When the VMM does not answer.
    pub(crate) async fn remove_disk(&self, serial: &str) -> Result<(), VmError> {
        self.control.remove_disk(serial).await
    }

    /// Lets the guest find what was sent as `descriptor` among its volumes. One that is there stays
    /// what it is, and becomes writable if that is asked for.
    ///
    /// # Errors
    ///
    /// When the VMM does not take it.
    pub(crate) async fn add_volume(
        &self,
        name: &str,
        descriptor: &str,
        read_only: bool,
    ) -> Result<(), VmError> {
        self.control.add_volume(name, descriptor, read_only).await
    }

    /// Takes a volume from the guest. Idempotent.
    ///
    /// # Errors
    ///
    /// When the VMM does not answer.
    pub(crate) async fn remove_volume(&self, name: &str) -> Result<(), VmError> {
        self.control.remove_volume(name).await
    }

    /// Lets the VMM write a container's output to the file that was sent as `descriptor`; empty
    /// throws the output away.
    ///
    /// # Errors
    ///
    /// When the agent does not know the container or the VMM does not answer.
    pub(crate) async fn open_log(&self, id: &ContainerId, descriptor: &str) -> Result<(), VmError> {
        self.control.open_log(id, descriptor).await
    }

    /// Goes on in another file.
    ///
    /// # Errors
    ///
    /// When the VMM has no log of this container.
    pub(crate) async fn reopen_log(
        &self,
        id: &ContainerId,
        descriptor: &str,
    ) -> Result<(), VmError> {
        self.control.reopen_log(id, descriptor).await
    }

    /// Whether all of a container's output is in its log, after at most `limit`.
    ///
    /// # Errors
    ///
    /// When the VMM does not answer.
    pub(crate) async fn wait_log(
        &self,
        id: &ContainerId,
        limit: Duration,
    ) -> Result<bool, VmError> {
        self.control.wait_log(id, limit).await
    }

    /// Closes a container's log. Idempotent.
    ///
    /// # Errors
    ///
    /// When the VMM does not answer.
    pub(crate) async fn close_log(&self, id: &ContainerId) -> Result<(), VmError> {
        self.control.close_log(id).await
    }

    /// Host name, sysctls, DNS and the writable disk: once, before any container.
    ///
    /// # Errors
    ///
    /// When the agent refuses.
    pub(crate) async fn set_up_sandbox(
        &self,
        request: &SetUpSandboxRequest,
    ) -> Result<(), VmError> {
        self.agent.set_up_sandbox(request).await
    }

    /// The OCI `create` step.
    ///
    /// # Errors
    ///
    /// When the agent refuses.
    pub(crate) async fn create_container(
        &self,
        request: &CreateContainerRequest,
    ) -> Result<CreateContainerResponse, VmError> {
        self.agent.create_container(request).await
    }

    /// The OCI `start` step.
    ///
    /// # Errors
    ///
    /// When the agent refuses; the command may not be in the image.
    pub(crate) async fn start_container(&self, id: &ContainerId) -> Result<(), VmError> {
        self.agent.start_container(id).await
    }

    /// Starts another process in a container.
    ///
    /// # Errors
    ///
    /// When the agent refuses.
    pub(crate) async fn exec(&self, request: &ExecProcessRequest) -> Result<(), VmError> {
        self.agent.exec_process(request).await
    }

    /// Signals a container's own process, or one of its execs, or all of its processes.
    ///
    /// # Errors
    ///
    /// When the agent does not know the process.
    pub(crate) async fn signal(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        signal: i32,
        all: bool,
    ) -> Result<(), VmError> {
        self.agent.signal(id, exec, signal, all).await
    }

    /// Waits for a process for as long as it runs.
    ///
    /// # Errors
    ///
    /// [`VmError::Ended`] when the machine ends first; [`VmError::Broken`] when the connection did
    /// and another call may do better.
    pub(crate) async fn wait(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
    ) -> Result<ProcessExit, VmError> {
        self.agent.wait(id, exec).await
    }

    /// Lets the agent forget an exec that has exited. Idempotent.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub(crate) async fn delete_process(
        &self,
        id: &ContainerId,
        exec: &ExecId,
    ) -> Result<(), VmError> {
        self.agent.delete_process(id, exec).await
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    ///
    /// When the agent refuses.
    pub(crate) async fn update_container(
        &self,
        request: &UpdateContainerRequest,
    ) -> Result<(), VmError> {
        self.agent.update_container(request).await
    }

    /// Brings processors of the guest up, or takes them down.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub(crate) async fn set_processors(&self, count: u32) -> Result<(), VmError> {
        self.agent.set_processors(count).await
    }

    /// Asks the guest to have so much memory beside what it was started with.
    ///
    /// # Errors
    ///
    /// When there is no room for it, or the VMM does not answer.
    pub(crate) async fn resize_memory(&self, added_mib: u32) -> Result<(), VmError> {
        self.control.resize_memory(added_mib).await
    }

    /// Lets the guest find the device for that.
    ///
    /// # Errors
    ///
    /// When the agent refuses or does not answer.
    pub(crate) async fn use_memory(&self) -> Result<(), VmError> {
        let _search = self.searching_bus().await;
        self.agent.use_memory().await
    }

    /// What the guest has of what it was asked to have, in MiB, once it has all or is no nearer to it
    /// for as long as `patience`.
    ///
    /// # Errors
    ///
    /// When the VMM does not answer, or the guest goes on by little for too long.
    pub(crate) async fn wait_memory(&self, patience: Duration) -> Result<u32, VmError> {
        self.control.wait_memory(patience).await
    }

    /// Lets those in the guest who watch a volume know what has changed in it.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub(crate) async fn replay_changes(
        &self,
        request: &ReplayChangesRequest,
    ) -> Result<(), VmError> {
        self.agent.replay_changes(request).await
    }

    /// Kills what still runs of a container and removes it from the guest. Idempotent.
    ///
    /// # Errors
    ///
    /// When the agent does not answer.
    pub(crate) async fn delete_container(&self, id: &ContainerId) -> Result<(), VmError> {
        self.agent.delete_container(id.as_str()).await
    }

    /// The containers that the agent has, and whether each has been started.
    ///
    /// # Errors
    ///
    /// When the agent does not answer, or answers nonsense.
    pub(crate) async fn containers(&self) -> Result<BTreeMap<ContainerId, bool>, VmError> {
        self.agent.list_containers().await
    }

    /// What runs in the guest uses.
    ///
    /// # Errors
    ///
    /// When the agent does not answer within a few seconds, does not know the container, or answers
    /// nonsense.
    pub(crate) async fn stats(&self, ask: Ask<'_>) -> Result<GuestStats, VmError> {
        self.agent.stats(ask).await
    }

    /// A process's standard streams.
    ///
    /// # Errors
    ///
    /// When the agent does not know the process or has given its output to another primary reader.
    pub(crate) async fn open_stream(&self, request: &StreamOpen) -> Result<ProcessStream, VmError> {
        self.agent.open_stream(request).await
    }

    /// A connection to a TCP port of the guest, on 127.0.0.1 or else on ::1.
    ///
    /// # Errors
    ///
    /// When nothing answers on the port.
    pub(crate) async fn connect_port(&self, port: u16) -> Result<ProcessStream, VmError> {
        let request = StreamOpen {
            role: StreamRole::STREAM_ROLE_PORT.into(),
            port: port.into(),
            ..Default::default()
        };
        self.agent.open_stream(&request).await
    }

    /// Ends the machine: by asking the guest, then the VMM, then the kernel. Idempotent.
    ///
    /// # Errors
    ///
    /// [`VmError::Immortal`] when even the kernel does not end the process in time.
    pub(crate) async fn end(&self) -> Result<(), VmError> {
        if self.ended.now().is_some() {
            return Ok(());
        }
        let asked = self.agent.power_off().await;
        // A refused or unreachable agent does not need its time.
        let willing = matches!(
            &asked,
            Ok(()) | Err(VmError::Broken { .. } | VmError::Ended(_))
        );
        if willing && self.gone_within(POWER_OFF_LIMIT).await {
            return Ok(());
        }
        tracing::warn!(dir = %self.dir.display(), "the guest did not power off; shutting it down");
        let _told = self.control.shut_down().await;
        if self.gone_within(SHUT_DOWN_LIMIT).await {
            return Ok(());
        }
        self.kill().await
    }

    /// Ends the machine's process at once. Idempotent.
    ///
    /// # Errors
    ///
    /// [`VmError::Immortal`] when even the kernel does not end the process in time.
    pub(crate) async fn kill(&self) -> Result<(), VmError> {
        self.process.kill();
        if self.gone_within(KILL_LIMIT).await {
            return Ok(());
        }
        Err(VmError::Immortal(self.process.id().pid))
    }

    async fn gone_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.ended.wait()).await.is_ok()
    }
}

/// Kills a leftover VMM and waits until it is gone.
///
/// # Errors
///
/// [`VmError::Immortal`] when it does not go.
pub(crate) async fn kill_leftover(dir: &Path, id: ProcessId) -> Result<(), VmError> {
    match VmmProcess::of_record(id).map_err(VmError::io("watching the VMM of", dir))? {
        Some(process) if !process.kill_and_wait(KILL_LIMIT).await => Err(VmError::Immortal(id.pid)),
        _ => Ok(()),
    }
}

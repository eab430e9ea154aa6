//! A VMM without a virtual machine, for tests of the daemon where there is no KVM.
//!
//! It takes what a VMM inherits, answers what a VMM and an agent answer, and runs "containers" as
//! plain processes of this machine, which die with it. The sandbox's host name chooses how it
//! misbehaves:
//!
//! - `mute`: the agent never answers.
//! - `stubborn`: the agent does not power off.
//! - `full`: no container can be created.
//! - `frozen`: creating a container takes for ever.
//! - `sleepy`: it never says what it uses.

#![expect(
    unsafe_code,
    reason = "inherited descriptors are taken by their numbers"
)]

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use isopod_proto::agent::{
    CgroupStats, ContainerInfo, ContainerState, ContainerStats, CpuStats, CreateContainerRequest,
    CreateContainerResponse, DeleteContainerRequest, DeleteContainerResponse, DeleteProcessRequest,
    DeleteProcessResponse, ExecProcessRequest, ExecProcessResponse, HelloRequest, HelloResponse,
    ListContainersRequest, ListContainersResponse, MemoryStats, PowerOffRequest, PowerOffResponse,
    SetUpSandboxRequest, SetUpSandboxResponse, SignalProcessRequest, SignalProcessResponse,
    StartContainerRequest, StartContainerResponse, StatsRequest, StatsResponse, StreamOpen,
    StreamRole, WaitProcessRequest, WaitProcessResponse,
};
use isopod_proto::agent_ttrpc::{Agent, create_agent};
use isopod_proto::stream::{HEADER_LEN, Header, Kind};
use isopod_proto::vmm::{
    AddDiskRequest, AddDiskResponse, AddNicRequest, AddNicResponse, CloseLogRequest,
    CloseLogResponse, OpenLogRequest, OpenLogResponse, RemoveDiskRequest, RemoveDiskResponse,
    ReopenLogRequest, ReopenLogResponse, ShutDownRequest, ShutDownResponse, StartRequest,
    StartResponse, StatusRequest, StatusResponse, WaitLogRequest, WaitLogResponse,
};
use isopod_proto::vmm_ttrpc::{Machine, create_machine};
use isopod_proto::{AGENT_PORT, AGENT_PROTOCOL_VERSION, STREAM_PORT};
use protobuf::Message as _;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use rustix::process::{Pid, Signal};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use ttrpc::Code;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::error::get_rpc_status;

type Reply<T> = ttrpc::Result<T>;
type Output = (Kind, Vec<u8>);

/// A process that a container or an exec stands for.
struct Process {
    asked: Asked,
    pid: Mutex<Option<i32>>,
    exit: watch::Sender<Option<i32>>,
    sender: Mutex<Option<mpsc::Sender<Output>>>,
    output: Mutex<Option<mpsc::Receiver<Output>>>,
    /// Who gets a copy of the output; `None` when it has ended.
    copies: Mutex<Option<Vec<mpsc::Sender<Output>>>>,
    input: tokio::sync::Mutex<Option<Input>>,
    terminal: Mutex<Terminal>,
}

/// What a process was asked to be.
struct Asked {
    args: Vec<String>,
    terminal: bool,
    stdin: bool,
}

/// A terminal's main side, while it has a process, and its size.
#[derive(Default)]
struct Terminal {
    main: Option<OwnedFd>,
    size: Option<Winsize>,
}

type Input = Box<dyn tokio::io::AsyncWrite + Send + Unpin>;
type Pipe = Box<dyn tokio::io::AsyncRead + Send + Unpin>;

/// A container's log and whether all of it is written.
struct Log {
    file: Arc<Mutex<Option<File>>>,
    ended: watch::Receiver<bool>,
}

struct Fake {
    dir: PathBuf,
    hostname: Mutex<String>,
    files: Mutex<HashMap<String, OwnedFd>>,
    disks: Mutex<BTreeSet<String>>,
    /// The queues keep the taps alive.
    nics: Mutex<Vec<(String, Vec<File>)>>,
    /// By container id, and container and exec id.
    processes: Mutex<HashMap<(String, String), Arc<Process>>>,
    logs: Mutex<HashMap<String, Log>>,
}

/// The services, which must be types of this crate.
#[derive(Clone)]
struct Served(Arc<Fake>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse<T>(code: Code, text: &str) -> Reply<T> {
    Err(get_rpc_status(code, text))
}

impl Process {
    fn new(asked: Asked) -> Arc<Self> {
        let (sender, receiver) = mpsc::channel(16);
        Arc::new(Self {
            asked,
            pid: Mutex::new(None),
            exit: watch::Sender::new(None),
            sender: Mutex::new(Some(sender)),
            output: Mutex::new(Some(receiver)),
            copies: Mutex::new(Some(Vec::new())),
            input: tokio::sync::Mutex::new(None),
            terminal: Mutex::default(),
        })
    }

    async fn start(self: &Arc<Self>) -> Reply<()> {
        let program = &self.asked.args[0];
        let found = ["", "/bin", "/usr/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists());
        if !found {
            return refuse(Code::NOT_FOUND, &format!("{program:?} is not in the image"));
        }
        let (mut child, stdout, stderr) = self
            .spawn()
            .await
            .map_err(|error| get_rpc_status(Code::INTERNAL, error))?;
        *lock(&self.pid) = child.id().and_then(|pid| i32::try_from(pid).ok());
        let sender = lock(&self.sender)
            .take()
            .expect("a process is started once");
        let process = Arc::clone(self);
        tokio::spawn(async move {
            tokio::join!(
                process.forward(stdout, Kind::Stdout, &sender),
                process.forward(stderr, Kind::Stderr, &sender),
            );
            lock(&process.copies).take();
        });
        let process = Arc::clone(self);
        tokio::spawn(async move {
            use std::os::unix::process::ExitStatusExt as _;
            let status = child.wait().await.expect("a child that was not waited for");
            let code = status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            process.exit.send_replace(Some(code));
        });
        Ok(())
    }

    async fn spawn(&self) -> std::io::Result<(Child, Pipe, Pipe)> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if self.asked.terminal {
            return self.spawn_on_terminal(command).await;
        }
        command
            .args(&self.asked.args)
            .stdin(if self.asked.stdin {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        if let Some(input) = child.stdin.take() {
            *self.input.lock().await = Some(Box::new(input));
        }
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        Ok((child, Box::new(stdout), Box::new(stderr)))
    }

    async fn spawn_on_terminal(
        &self,
        mut command: Command,
    ) -> std::io::Result<(Child, Pipe, Pipe)> {
        let pty = nix::pty::openpty(None, None)?;
        let (main, side) = (pty.master, pty.slave);
        if let Some(size) = lock(&self.terminal).size {
            tcsetwinsize(&main, size)?;
        }
        command
            .args(["setsid", "--ctty"])
            .args(&self.asked.args)
            .stdin(side.try_clone()?)
            .stdout(side.try_clone()?)
            .stderr(side);
        let child = command.spawn()?;
        let file = |fd: &OwnedFd| {
            Ok::<_, std::io::Error>(tokio::fs::File::from_std(fd.try_clone()?.into()))
        };
        *self.input.lock().await = Some(Box::new(file(&main)?));
        let output = file(&main)?;
        lock(&self.terminal).main = Some(main);
        Ok((child, Box::new(output), Box::new(tokio::io::empty())))
    }

    async fn forward(&self, mut pipe: Pipe, kind: Kind, sender: &mpsc::Sender<Output>) {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            let piece = (kind, buffer[..count].to_vec());
            let copies = lock(&self.copies).clone().unwrap_or_default();
            for copy in copies {
                let _gone = copy.send(piece.clone()).await;
            }
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    }

    /// What a stream with this role reads.
    fn output(&self, role: StreamRole) -> Option<mpsc::Receiver<Output>> {
        if role != StreamRole::STREAM_ROLE_ATTACH {
            return lock(&self.output).take();
        }
        let (sender, receiver) = mpsc::channel(16);
        if let Some(copies) = lock(&self.copies).as_mut() {
            copies.push(sender);
        }
        Some(receiver)
    }

    async fn take_input(&self, mut stream: OwnedReadHalf) -> std::io::Result<()> {
        loop {
            let (kind, payload) = receive(&mut stream).await?;
            let mut input = self.input.lock().await;
            match (kind, input.as_mut()) {
                (Kind::Stdin, Some(input)) => {
                    let _gone = input.write_all(&payload).await;
                    let _gone = input.flush().await;
                }
                (Kind::StdinClosed, _) => *input = None,
                (Kind::Resize, _) => self.resize(&payload)?,
                _ => {}
            }
        }
    }

    fn resize(&self, payload: &[u8]) -> std::io::Result<()> {
        let size = Winsize {
            ws_col: u16::from_be_bytes([payload[0], payload[1]]),
            ws_row: u16::from_be_bytes([payload[2], payload[3]]),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let mut terminal = lock(&self.terminal);
        terminal.size = Some(size);
        if let Some(main) = &terminal.main {
            tcsetwinsize(main, size)?;
        }
        Ok(())
    }

    fn signal(&self, number: i32) {
        let pid = lock(&self.pid).and_then(Pid::from_raw);
        if let (Some(pid), Some(signal), None) =
            (pid, Signal::from_named_raw(number), *self.exit.borrow())
        {
            let _gone = rustix::process::kill_process_group(pid, signal);
        }
    }

    async fn wait(&self) -> i32 {
        let mut exit = self.exit.subscribe();
        let code = exit
            .wait_for(Option::is_some)
            .await
            .expect("the sender is in self");
        code.expect("waited for")
    }
}

/// Writes whole lines in the CRI's format.
async fn write_log(
    mut output: mpsc::Receiver<Output>,
    file: Arc<Mutex<Option<File>>>,
    ended: watch::Sender<bool>,
) {
    let mut rest: HashMap<u8, Vec<u8>> = HashMap::new();
    while let Some((kind, bytes)) = output.recv().await {
        let line = rest.entry(kind as u8).or_default();
        line.extend(bytes);
        while let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            let text: Vec<u8> = line.drain(..=end).collect();
            let name = if kind == Kind::Stdout {
                "stdout"
            } else {
                "stderr"
            };
            let mut record = format!("2026-01-01T00:00:00.000000000Z {name} F ").into_bytes();
            record.extend(text);
            if let Some(file) = lock(&file).as_mut() {
                file.write_all(&record).expect("the log can be written");
            }
        }
    }
    ended.send_replace(true);
}

impl Fake {
    fn process(&self, container: &str, exec: &str) -> Reply<Arc<Process>> {
        let key = (container.to_owned(), exec.to_owned());
        let found = lock(&self.processes).get(&key).cloned();
        found.map_or_else(|| refuse(Code::NOT_FOUND, "no such process"), Ok)
    }

    fn add(&self, container: &str, exec: &str, process: Arc<Process>) {
        lock(&self.processes).insert((container.to_owned(), exec.to_owned()), process);
    }

    fn take_file(&self, name: &str) -> Reply<Option<File>> {
        if name.is_empty() {
            return Ok(None);
        }
        match lock(&self.files).remove(name) {
            Some(fd) => Ok(Some(fd.into())),
            None => refuse(Code::NOT_FOUND, &format!("no descriptor {name}")),
        }
    }

    fn hostname_is(&self, name: &str) -> bool {
        *lock(&self.hostname) == name
    }

    /// Ends the process with its last words.
    fn end(&self, reason: &str) -> ! {
        let words = format!(
            r#"{{"reason":"{reason}","message":"","at_ns":{}}}"#,
            now_ns()
        );
        std::fs::write(self.dir.join("exit.json"), words).expect("the folder is there");
        for process in lock(&self.processes).values() {
            process.signal(9);
        }
        std::process::exit(0)
    }
}

fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

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

/// One connection to the vsock: the handshake, then the agent's service or a stream.
async fn connection(
    mut stream: UnixStream,
    fake: Arc<Fake>,
    agents: mpsc::UnboundedSender<UnixStream>,
) -> std::io::Result<()> {
    let mut line = String::new();
    while !line.ends_with('\n') {
        line.push(char::from(stream.read_u8().await?));
    }
    let port = line
        .trim_end()
        .strip_prefix("CONNECT ")
        .and_then(|port| port.parse().ok());
    stream.write_all(b"OK 1073741824\n").await?;
    if port == Some(AGENT_PORT) {
        let _ended = agents.send(stream);
        return Ok(());
    }
    assert_eq!(port, Some(STREAM_PORT), "{line:?}");
    let (mut reader, mut writer) = stream.into_split();
    let (_open, payload) = receive(&mut reader).await?;
    let open = StreamOpen::parse_from_bytes(&payload)?;
    if open.role == StreamRole::STREAM_ROLE_PORT.into() {
        return forward(reader, writer, open.port).await;
    }
    let process = fake.process(&open.container_id, &open.exec_id).ok();
    let output = process
        .as_ref()
        .and_then(|process| process.output(open.role.enum_value_or_default()));
    let (Some(process), Some(mut output)) = (process, output) else {
        let text = b"no such process, or its output is taken";
        return send(&mut writer, Kind::Error, text).await;
    };
    send(&mut writer, Kind::Opened, b"").await?;
    let input = tokio::spawn(async move { process.take_input(reader).await });
    while let Some((kind, bytes)) = output.recv().await {
        send(&mut writer, kind, &bytes).await?;
    }
    send(&mut writer, Kind::End, b"").await?;
    input.abort();
    Ok(())
}

/// A connection to a port of this machine.
async fn forward(
    mut reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    port: u32,
) -> std::io::Result<()> {
    let connected = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            return send(&mut writer, Kind::Error, error.to_string().as_bytes()).await;
        }
    };
    send(&mut writer, Kind::Opened, b"").await?;
    let (mut from_port, to_port) = connection.into_split();
    let input = async {
        let mut to_port = Some(to_port);
        loop {
            match (receive(&mut reader).await?, &mut to_port) {
                ((Kind::Stdin, bytes), Some(open)) => {
                    let _gone = open.write_all(&bytes).await;
                }
                _ => to_port = None,
            }
        }
    };
    let output = async {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = from_port.read(&mut buffer).await {
            send(&mut writer, Kind::Stdout, &buffer[..count]).await?;
        }
        send(&mut writer, Kind::End, b"").await?;
        std::future::pending().await
    };
    tokio::select! {
        result = input => result,
        result = output => result,
    }
}

async fn receive(stream: &mut OwnedReadHalf) -> std::io::Result<(Kind, Vec<u8>)> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    let header = Header::decode(header).map_err(std::io::Error::other)?;
    let mut payload = vec![0; header.len];
    stream.read_exact(&mut payload).await?;
    Ok((header.kind, payload))
}

async fn send(stream: &mut OwnedWriteHalf, kind: Kind, payload: &[u8]) -> std::io::Result<()> {
    stream
        .write_all(
            &Header {
                kind,
                len: payload.len(),
            }
            .encode(),
        )
        .await?;
    stream.write_all(payload).await
}

/// Takes descriptors for as long as the process lives. Blocking.
fn take_descriptors(listener: &OwnedFd, fake: &Arc<Fake>) -> std::io::Result<()> {
    loop {
        let socket = rustix::net::accept(listener)?;
        let fake = Arc::clone(fake);
        std::thread::Builder::new().spawn(move || while take_one(&socket, &fake).is_some() {})?;
    }
}

fn take_one(socket: &OwnedFd, fake: &Fake) -> Option<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 96];
    let mut buffer = [std::io::IoSliceMut::new(&mut name)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut buffer, &mut control, flags).ok()?;
    let name = String::from_utf8_lossy(name.get(..received.bytes).filter(|n| !n.is_empty())?);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            lock(&fake.files).extend(fds.map(|fd| (name.to_string(), fd)));
        }
    }
    rustix::net::send(socket, b"", SendFlags::NOSIGNAL)
        .ok()
        .map(drop)
}

/// Inherited descriptors by name.
fn inherited() -> HashMap<String, OwnedFd> {
    let names = std::env::var("LISTEN_FDNAMES").expect("started by the daemon");
    let numbers = 3 as RawFd..;
    names
        .split(':')
        .zip(numbers)
        // SAFETY: the daemon put one descriptor behind each name, from 3 on, and nobody else here
        // has touched them.
        .map(|(name, number)| (name.to_owned(), unsafe { OwnedFd::from_raw_fd(number) }))
        .collect()
}

fn listener(fds: &mut HashMap<String, OwnedFd>, name: &str) -> UnixListener {
    let listener = std::os::unix::net::UnixListener::from(fds.remove(name).expect("inherited"));
    listener.set_nonblocking(true).expect("a socket");
    UnixListener::from_std(listener).expect("a socket on a runtime")
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    assert_eq!(arguments.next().as_deref(), Some("--dir"));
    let mut fds = inherited();
    let (control, vsock) = (listener(&mut fds, "control"), listener(&mut fds, "vsock"));
    let descriptors = fds.remove("descriptors").expect("inherited");
    let fake = Arc::new(Fake {
        dir: arguments.next().expect("--dir DIR").into(),
        hostname: Mutex::default(),
        files: Mutex::new(fds),
        disks: Mutex::new(BTreeSet::from(["scratch".to_owned()])),
        nics: Mutex::default(),
        processes: Mutex::default(),
        logs: Mutex::default(),
    });
    let at = Arc::clone(&fake);
    std::thread::Builder::new()
        .spawn(move || take_descriptors(&descriptors, &at))
        .expect("a thread");
    let control = tokio_stream::wrappers::UnixListenerStream::new(control);
    let mut machine = Server::new()
        .add_listener(Listener::new(control))
        .register_service(create_machine(Arc::new(Served(Arc::clone(&fake)))));
    machine.start().await.expect("a listener");

    let (agents, connected) = mpsc::unbounded_channel();
    let connected = tokio_stream::wrappers::UnboundedReceiverStream::new(connected);
    let connected = tokio_stream::StreamExt::map(connected, std::io::Result::Ok);
    let mut agent = Server::new()
        .add_listener(Listener::new(connected))
        .register_service(create_agent(Arc::new(Served(Arc::clone(&fake)))));
    agent.start().await.expect("a listener");
    loop {
        let (stream, _) = vsock.accept().await.expect("a listening socket");
        tokio::spawn(connection(stream, Arc::clone(&fake), agents.clone()));
    }
}

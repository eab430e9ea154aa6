//! An agent of one's own, and what a daemon does with it.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use isopod_proto::AGENT_PROTOCOL_VERSION;
use isopod_proto::agent::{
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, ExecProcessRequest,
    HelloRequest, RootFs, SetUpSandboxRequest, SignalProcessRequest, StartContainerRequest,
    StreamOpen, StreamRole, User, WaitProcessRequest, WaitProcessResponse,
};
use isopod_proto::agent_ttrpc::AgentClient;
use isopod_proto::stream::{HEADER_LEN, Header, Kind};
use protobuf::{EnumOrUnknown, Message, MessageField};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::context::Context;

/// Longest that a step may take on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const BUSYBOX: &str = "/bin/busybox";
const SCRATCH: &str = "scratch";

/// Runs a test with an agent, if this machine can.
pub(crate) fn with_agent<F>(test: impl FnOnce(Agent) -> F)
where
    F: Future<Output = ()>,
{
    with_sandbox(SetUpSandboxRequest::new(), test);
}

/// The same in a sandbox that is set up with more than the usual.
pub(crate) fn with_sandbox<F>(set_up: SetUpSandboxRequest, test: impl FnOnce(Agent) -> F)
where
    F: Future<Output = ()>,
{
    if let Some(reason) = cannot_run() {
        return isopod_tests::skip(reason);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let agent = Agent::start().await;
        agent.set_up(set_up).await;
        tokio::time::timeout(PATIENCE * 5, test(agent))
            .await
            .expect("the test takes too long");
    });
}

fn cannot_run() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    if !Path::new(BUSYBOX).exists() {
        return Some("needs /bin/busybox (apt-get install busybox-static)");
    }
    None
}

/// An agent with a sandbox that is set up.
pub(crate) struct Agent {
    pub(crate) client: AgentClient,
    folder: TempDir,
    cgroup: String,
    process: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // `unshare --kill-child` takes the agent with it, and the agent's pid namespace everything.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let cgroup = unified().join(&self.cgroup);
        let deadline = Instant::now() + PATIENCE;
        while cgroup.exists() && Instant::now() < deadline {
            remove_groups(&cgroup);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_groups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// Where this machine has its unified hierarchy.
fn unified() -> PathBuf {
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    if hybrid.exists() {
        hybrid.to_owned()
    } else {
        "/sys/fs/cgroup".into()
    }
}

impl Agent {
    async fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().unwrap();
        // A user namespace's root goes through it, as anybody may in a guest.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let disks = folder.path().join("disks");
        fs::create_dir_all(disks.join(SCRATCH)).unwrap();
        busybox_image(&disks.join("busybox"));
        for number in 0..4 {
            symlink("busybox", disks.join(format!("busybox{number}"))).unwrap();
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("isopod-test-{}-{number}", std::process::id());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let process = Command::new("unshare")
            .args([
                "--mount",
                "--propagation=private",
                "--uts",
                "--ipc",
                "--net",
            ])
            .args([
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount-proc",
                "sh",
                "-c",
            ])
            .arg("mount -t cgroup2 cgroup2 /sys/fs/cgroup && ip link set lo up && exec \"$0\" \"$@\"")
            .arg(env!("CARGO_BIN_EXE_isopod-agent"))
            .args([
                "serve",
                "--agent",
                &path("agent.sock"),
                "--streams",
                &path("streams.sock"),
            ])
            .args(["--state-dir", &path("state"), "--disks", &path("disks")])
            .args(["--cgroup", &format!("/{cgroup}")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let client = connect(&folder.path().join("agent.sock")).await;
        Self {
            client,
            folder,
            cgroup,
            process,
        }
    }

    async fn set_up(&self, more: SetUpSandboxRequest) {
        let hello = HelloRequest {
            protocol_version: AGENT_PROTOCOL_VERSION,
            ..Default::default()
        };
        self.client.hello(context(), &hello).await.unwrap();
        let set_up = SetUpSandboxRequest {
            sandbox_id: "sandbox".to_owned(),
            hostname: "test-pod".to_owned(),
            scratch_serial: SCRATCH.to_owned(),
            ..more
        };
        self.client
            .set_up_sandbox(context(), &set_up)
            .await
            .unwrap();
    }

    /// A second connection, like a daemon that was restarted.
    pub(crate) async fn reconnect(&self) -> AgentClient {
        connect(&self.folder.path().join("agent.sock")).await
    }

    /// The folder of disks.
    pub(crate) fn disks(&self) -> PathBuf {
        self.folder.path().join("disks")
    }

    /// Creates a container from `spec` on the first disk.
    pub(crate) async fn create(
        &self,
        id: &str,
        spec: &Value,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.create_with(request(id, spec)).await
    }

    pub(crate) async fn create_with(
        &self,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.client.create_container(context(), &request).await
    }

    pub(crate) async fn start_container(&self, id: &str) -> ttrpc::Result<()> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.client
            .start_container(context(), &request)
            .await
            .map(drop)
    }

    /// Creates and starts a container that runs `script`.
    pub(crate) async fn run(&self, id: &str, script: &str) {
        self.create(id, &spec(&["sh", "-c", script])).await.unwrap();
        self.start_container(id).await.unwrap();
    }

    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<WaitProcessResponse> {
        let request = WaitProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.client.wait_process(context(), &request).await
    }

    pub(crate) async fn signal(&self, id: &str, exec_id: &str, signal: i32, all: bool) {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.client
            .signal_process(context(), &request)
            .await
            .unwrap();
    }

    pub(crate) async fn exec(&self, id: &str, exec_id: &str, args: &[&str]) -> ttrpc::Result<()> {
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..Default::default()
        };
        self.client
            .exec_process(context(), &request)
            .await
            .map(drop)
    }

    pub(crate) async fn delete(&self, id: &str) -> ttrpc::Result<()> {
        let request = DeleteContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.client
            .delete_container(context(), &request)
            .await
            .map(drop)
    }

    /// Opens a stream, and expects that it is accepted.
    pub(crate) async fn open(&self, id: &str, exec_id: &str, role: StreamRole) -> Stream {
        self.try_open(id, exec_id, role, false).await.unwrap()
    }

    pub(crate) async fn try_open(
        &self,
        id: &str,
        exec_id: &str,
        role: StreamRole,
        stdin: bool,
    ) -> Result<Stream, String> {
        let open = StreamOpen {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            role: EnumOrUnknown::new(role),
            stdin,
            ..Default::default()
        };
        self.try_open_with(&open).await
    }

    pub(crate) async fn try_open_with(&self, open: &StreamOpen) -> Result<Stream, String> {
        let path = self.folder.path().join("streams.sock");
        let mut stream = Stream(UnixStream::connect(path).await.unwrap());
        stream
            .send(Kind::Open, &open.write_to_bytes().unwrap())
            .await;
        match stream.receive().await {
            Some((Kind::Opened, _)) => Ok(stream),
            Some((Kind::Error, text)) => Err(String::from_utf8(text).unwrap()),
            other => panic!("neither Opened nor Error: {other:?}"),
        }
    }

    /// A connection on which nothing was said yet.
    pub(crate) async fn raw_stream(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("streams.sock"))
            .await
            .unwrap()
    }

    /// Waits until the agent's process has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the agent does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// All that a process says, standard output and error apart, up to its end.
    pub(crate) async fn output(&self, id: &str, exec_id: &str) -> Output {
        self.open(id, exec_id, StreamRole::STREAM_ROLE_PRIMARY)
            .await
            .into_end()
            .await
    }

    /// Runs a script in a container of its own and answers its exit code and output.
    pub(crate) async fn outcome(&self, id: &str, spec: &Value) -> (i32, Output) {
        self.create(id, spec).await.unwrap();
        self.start_container(id).await.unwrap();
        let output = self.output(id, "").await;
        let exit = self.wait(id, "").await.unwrap();
        self.delete(id).await.unwrap();
        (exit.exit_code, output)
    }

    /// What the agent has, beside itself: mounts, files, cgroups, descriptors, processes.
    fn possessions(&self) -> Vec<String> {
        let pid = self.agent_pid();
        let state = self.folder.path().join("state");
        let list = |path: PathBuf| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries
                .map(|entry| entry.path().display().to_string())
                .collect::<Vec<_>>()
        };
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
        let own = self.folder.path().display().to_string();
        let mounts = mounts.lines().filter(|line| line.contains(&own));
        let mut all: Vec<String> = mounts.map(str::to_owned).collect();
        for name in ["containers", "runtime", "consoles"] {
            all.extend(list(state.join(name)));
        }
        all.extend(list(self.disks().join(SCRATCH)));
        let groups = list(unified().join(&self.cgroup));
        all.extend(groups.into_iter().filter(|path| Path::new(path).is_dir()));
        all.push(format!(
            "{} descriptors",
            list(format!("/proc/{pid}/fd").into()).len()
        ));
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        all.push(format!("children: {}", children.unwrap_or_default()));
        all
    }

    /// What the agent has when no helper of an earlier operation is on its way out any more.
    pub(crate) async fn settled_possessions(&self) -> Vec<String> {
        let mut before = self.possessions();
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = self.possessions();
            if now == before {
                return now;
            }
            before = now;
        }
    }

    /// Waits until the agent has what it had `before`, and no more. Helpers end a moment after
    /// their operation.
    pub(crate) async fn assert_possessions(&self, before: &[String], when: &str) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.possessions() != before {
            if Instant::now() > deadline {
                assert_eq!(self.possessions(), before, "{when}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// As this test sees it: the one child of `unshare`.
    pub(crate) fn agent_pid(&self) -> u32 {
        let unshare = self.process.id();
        let path = format!("/proc/{unshare}/task/{unshare}/children");
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }
}

async fn connect(path: &Path) -> AgentClient {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ttrpc::asynchronous::Client::connect(&format!("unix://{}", path.display())).await {
            Ok(client) => return AgentClient::new(client),
            Err(error) => assert!(
                Instant::now() < deadline,
                "the agent does not listen: {error}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn context() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}

/// The code and message of an error.
pub(crate) fn status<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("not a status: {other}"),
    }
}

/// A create request for the first disk.
pub(crate) fn request(id: &str, spec: &Value) -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: id.to_owned(),
        spec: serde_json::to_vec(spec).unwrap(),
        rootfs: MessageField::some(RootFs {
            disk_serial: "busybox".to_owned(),
            ..Default::default()
        }),
        user: MessageField::some(User::new()),
        ..Default::default()
    }
}

/// A spec as a CRI server writes it: everything confined but for limits.
pub(crate) fn spec(args: &[&str]) -> Value {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_MKNOD",
    ];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": false,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            }
        },
        "root": {"path": "ignored"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn busybox_image(root: &Path) {
    for folder in ["bin", "etc", "root", "tmp", "home/web"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    let applets = Command::new(BUSYBOX).arg("--list").output().unwrap();
    for name in String::from_utf8(applets.stdout).unwrap().lines() {
        if name != "busybox" {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:web:/home/web:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nweb:x:1001:\nlog:x:1002:web\n",
    )
    .unwrap();
}

/// What a process said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A stream connection.
pub(crate) struct Stream(UnixStream);

impl Stream {
    pub(crate) async fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.0
            .write_all(
                &Header {
                    kind,
                    len: payload.len(),
                }
                .encode(),
            )
            .await
            .unwrap();
        self.0.write_all(payload).await.unwrap();
    }

    /// The next frame; none when the agent has closed.
    pub(crate) async fn receive(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut header = [0; HEADER_LEN];
        match self.0.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
            result => result.unwrap(),
        };
        let header = Header::decode(header).unwrap();
        let mut payload = vec![0; header.len];
        self.0.read_exact(&mut payload).await.unwrap();
        Some((header.kind, payload))
    }

    /// Reads until the output contains `text`.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let (_, payload) = self
                .receive()
                .await
                .expect("the stream ends before the text");
            seen += &String::from_utf8_lossy(&payload);
        }
        seen
    }

    /// Reads to `End`, which must come.
    pub(crate) async fn into_end(mut self) -> Output {
        let mut output = Output::default();
        loop {
            let (kind, payload) = self.receive().await.expect("the stream closes without End");
            let text = String::from_utf8_lossy(&payload);
            match kind {
                Kind::Stdout => output.stdout += &text,
                Kind::Stderr => output.stderr += &text,
                Kind::End => return output,
                other => panic!("unexpected frame {other:?}"),
            }
        }
    }
}

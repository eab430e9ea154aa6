//! Our VMM, started as the daemon starts it: sockets bound, descriptors inherited, then `Start`.
#![expect(
    unsafe_code,
    reason = "a hook between fork and exec puts the descriptors in their places"
)]

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_proto::AGENT_PORT;
use isopod_proto::descriptors;
use isopod_proto::vmm::{AddNicRequest, Nic, StartRequest};
use isopod_proto::vmm_ttrpc::MachineClient;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind,
    connect as connect_to, listen, recv, sendmsg, socket,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

use super::{Guest, LIMIT, MEMORY_MIB, PROCESSORS, agent, memory};
use crate::process::Child;

/// Where inherited descriptors begin (`sd_listen_fds(3)`).
const FIRST: RawFd = 3;

/// Longest answer to `CONNECT`: `OK 4294967295` and a newline.
const ANSWER_MAX: usize = 16;

/// Longest refusal of a descriptor, in bytes.
const REFUSAL_MAX: usize = 1024;

/// What the VMM knows the interface by, and its tap.
const TAP: &str = "eth0";

/// A VMM whose guest boots. Dropping it ends both.
pub(super) struct Vmm {
    /// When its process started.
    began: Instant,
    process: Child,
    machine: MachineClient,
    folder: TempDir,
}

impl Vmm {
    pub(super) async fn boot(guest: &Guest) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in("/run")?;
        let inherited = inheritance(folder.path(), guest)?;
        let mut command = command(folder.path(), guest, &inherited)?;

        let began = Instant::now();
        let process = Child::new(command.spawn().context("starting isopod-vmm")?);
        let control = UnixStream::connect(folder.path().join("control.sock")).await?;
        let vmm = Self {
            began,
            process,
            machine: MachineClient::new(Client::new(Socket::new(control))),
            folder,
        };
        let request = StartRequest {
            max_vcpus: PROCESSORS,
            memory_mib: MEMORY_MIB,
            initramfs: guest.agent_image.is_none(),
            ..StartRequest::default()
        };
        let started = vmm.machine.start(Context::default(), &request).await;
        vmm.with_log(started.context("Start"))?;
        Ok(vmm)
    }

    /// Adds an interface with one pair of queues, as the daemon does.
    pub(super) async fn add_nic(&self, tap: &OwnedFd, mac: [u8; 6], mtu: u32) -> Result<()> {
        let socket = packet_socket()?;
        let path = UnixAddr::new(&self.folder.path().join("descriptors.sock"))?;
        connect_to(socket.as_raw_fd(), &path).context("connecting to the descriptor socket")?;
        let name = [IoSlice::new(TAP.as_bytes())];
        let tap = [tap.as_raw_fd()];
        let carried = [ControlMessage::ScmRights(&tap)];
        sendmsg::<()>(socket.as_raw_fd(), &name, &carried, MsgFlags::empty(), None)?;
        let mut refusal = [0; REFUSAL_MAX];
        let len = recv(socket.as_raw_fd(), &mut refusal, MsgFlags::empty())?;
        let refusal = String::from_utf8_lossy(&refusal[..len]);
        ensure!(len == 0, "the VMM did not take the tap: {refusal}");
        let request = AddNicRequest {
            nic: Some(Nic {
                name: TAP.to_owned(),
                mac: mac.to_vec(),
                mtu,
                descriptors: vec![TAP.to_owned()],
                ..Nic::default()
            })
            .into(),
            ..AddNicRequest::default()
        };
        let added = self.machine.add_nic(Context::default(), &request).await;
        self.with_log(added.context("AddNic"))?;
        Ok(())
    }

    /// An error with what the VMM said.
    pub(super) fn with_log<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| {
            std::fs::read_to_string(self.folder.path().join("vmm.log")).unwrap_or_default()
        })
    }
}

/// Boots a guest; the time from the start of the process to the agent's first answer, and the
/// bytes of memory that the VMM then has beside the guest's RAM.
pub(super) async fn start(guest: &Guest) -> Result<(Duration, u64)> {
    let vmm = Vmm::boot(guest).await?;
    let vsock = vmm.folder.path().join("vsock.sock");
    let answered = agent::answered(LIMIT, || connect(&vsock)).await;
    let took = vmm.began.elapsed();
    vmm.with_log(answered)?;
    let ram = u64::from(MEMORY_MIB) << 20;
    let image = guest.agent_image.as_deref();
    Ok((took, memory::beside_guest(vmm.process.pid(), ram, image)?))
}

/// A connection to the agent's port through the hybrid vsock.
async fn connect(path: &Path) -> Result<Socket> {
    let mut stream = UnixStream::connect(path).await?;
    stream
        .write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes())
        .await?;
    // Byte by byte: what follows the line belongs to the connection.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        ensure!(line.len() < ANSWER_MAX, "the answer to CONNECT is too long");
        line.push(stream.read_u8().await?);
    }
    ensure!(line.starts_with(b"OK "), "CONNECT was refused");
    Ok(Socket::new(stream))
}

/// Every descriptor that the VMM gets, under its name, in order.
fn inheritance(folder: &Path, guest: &Guest) -> Result<Vec<(&'static str, OwnedFd)>> {
    let listener = |name: &str| UnixListener::bind(folder.join(name)).map(OwnedFd::from);
    let file = |path: &Path| File::open(path).map(OwnedFd::from);
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("opening /dev/kvm")?;
    Ok(vec![
        (descriptors::CONTROL, listener("control.sock")?),
        (
            descriptors::DESCRIPTORS,
            packets(&folder.join("descriptors.sock"))?,
        ),
        (descriptors::VSOCK, listener("vsock.sock")?),
        (descriptors::KVM, kvm.into()),
        (descriptors::KERNEL, file(&guest.kernel)?),
        match &guest.agent_image {
            Some(image) => (descriptors::AGENT_IMAGE, file(image)?),
            None => (descriptors::INITRAMFS, file(&guest.initramfs)?),
        },
    ])
}

/// A listening `SOCK_SEQPACKET` unix socket.
fn packets(path: &Path) -> Result<OwnedFd> {
    let fd = packet_socket()?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(8)?)?;
    Ok(fd)
}

fn packet_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

fn command(folder: &Path, guest: &Guest, inherited: &[(&'static str, OwnedFd)]) -> Result<Command> {
    let names: Vec<&str> = inherited.iter().map(|(name, _)| *name).collect();
    let mut command = Command::new(&guest.vmm);
    command.arg("--dir").arg(folder).env_clear();
    command
        .env("LISTEN_FDS", names.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(folder.join("vmm.log"))?);
    // Copies above every target, so that no move overwrites a descriptor that is still to move.
    let above = FIRST + RawFd::try_from(inherited.len())?;
    let sources: Vec<RawFd> = inherited
        .iter()
        .map(|(_, fd)| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(above)))
        .collect::<Result<_, _>>()?;
    let hook = move || {
        for (target, source) in (FIRST..).zip(&sources) {
            // SAFETY: dup2 works on numbers alone, and the target belongs to this forked child,
            // which is about to exec.
            if unsafe { libc::dup2(*source, target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes one system call, dup2, which is async-signal-safe;
    // `sources` was allocated before the fork.
    unsafe { command.pre_exec(hook) };
    Ok(command)
}

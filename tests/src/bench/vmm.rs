//! Our VMM, started as the daemon starts it: sockets bound, descriptors inherited, then `Start`.
#![expect(
    unsafe_code,
    reason = "a hook between fork and exec puts the descriptors in their places"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_proto::AGENT_PORT;
use isopod_proto::descriptors;
use isopod_proto::vmm::StartRequest;
use isopod_proto::vmm_ttrpc::MachineClient;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use super::{Guest, LIMIT, MEMORY_MIB, agent, memory};
use crate::environment;
use crate::process::Child;

/// Where inherited descriptors begin (`sd_listen_fds(3)`).
const FIRST: RawFd = 3;

/// Longest answer to `CONNECT`: `OK 4294967295` and a newline.
const ANSWER_MAX: usize = 16;

/// Boots a guest; the time from the start of the process to the agent's first answer, and the
/// bytes of memory that the VMM then has beside the guest's RAM.
pub(super) async fn start(guest: &Guest) -> Result<(Duration, u64)> {
    let folder = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in("/run")?;
    let folder = folder.path();
    let inherited = inheritance(folder, guest)?;
    let mut command = command(folder, &inherited)?;

    let begin = Instant::now();
    let vmm = Child::new(command.spawn().context("starting isopod-vmm")?);
    let control = UnixStream::connect(folder.join("control.sock")).await?;
    let machine = MachineClient::new(Client::new(Socket::new(control)));
    let request = StartRequest {
        max_vcpus: 1,
        memory_mib: MEMORY_MIB,
        ..StartRequest::default()
    };
    let started = machine
        .start(ttrpc::context::Context::default(), &request)
        .await;
    started.with_context(|| log(folder)).context("Start")?;
    let vsock = folder.join("vsock.sock");
    let answered = agent::answered(LIMIT, || connect(&vsock)).await;
    let took = begin.elapsed();
    answered.with_context(|| log(folder))?;

    Ok((
        took,
        memory::beside_guest(vmm.pid(), u64::from(MEMORY_MIB) << 20)?,
    ))
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
        (descriptors::INITRAMFS, file(&guest.initramfs)?),
    ])
}

/// A listening `SOCK_SEQPACKET` unix socket.
fn packets(path: &Path) -> Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(8)?)?;
    Ok(fd)
}

fn command(folder: &Path, inherited: &[(&'static str, OwnedFd)]) -> Result<Command> {
    let names: Vec<&str> = inherited.iter().map(|(name, _)| *name).collect();
    let mut command = Command::new(environment::binary("isopod-vmm")?);
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

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("vmm.log")).unwrap_or_default()
}

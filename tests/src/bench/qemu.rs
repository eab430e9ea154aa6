//! The peer: Debian's QEMU with its smallest machine, `microvm`, as its documentation has it: KVM,
//! virtio over MMIO, no legacy devices. Its guest's vsock is the kernel's (`vhost_vsock`), so the
//! sign of life is the same: the agent's first answer to `Hello`, not a line on a console.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_proto::AGENT_PORT;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tempfile::TempDir;
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::asynchronous::transport::Socket;

use super::{Guest, KERNEL_ARGS, LIMIT, MEMORY_MIB, PROCESSORS, agent};
use crate::images::elf;
use crate::process::Child;

/// The guest's address among this host's vsock guests. One runs at a time.
const CID: u32 = 42;

/// Where Debian installs QEMU and its server of folders, and what its microvm reads of its firmware.
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
const FIRMWARE: [&str; 4] = [
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/kvmvapic.bin",
];

/// Descriptors in the queue of requests that virtiofsd's documentation sets up.
const SHARED_QUEUE: u16 = 1024;

/// A copy of QEMU and virtiofsd with their libraries and firmware.
#[derive(Debug)]
pub(super) struct Installation {
    folder: PathBuf,
}

impl Installation {
    /// Copies it into `folder`, which is made.
    pub(super) fn copy(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let mut files: Vec<PathBuf> = FIRMWARE.map(PathBuf::from).into();
        for program in [PROGRAM, VIRTIOFSD].map(PathBuf::from) {
            files.extend(elf::libraries(&program)?);
            files.push(program);
        }
        for file in files {
            let name = file.file_name().context("a file has a name")?;
            fs::copy(&file, folder.join(name))
                .with_context(|| format!("copying {}", file.display()))?;
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// A command that runs one of its programs.
    fn command(&self, program: &str) -> Result<Command> {
        let name = Path::new(program)
            .file_name()
            .context("a file has a name")?;
        let mut command = Command::new(self.folder.join(name));
        command.env("LD_LIBRARY_PATH", &self.folder);
        Ok(command)
    }
}

/// Boots a guest; the time from the start of the process to the agent's first answer.
pub(super) async fn start(guest: &Guest) -> Result<Duration> {
    let loaded = Command::new("modprobe")
        .arg("vhost_vsock")
        .status()
        .context("running modprobe")?;
    ensure!(
        loaded.success(),
        "QEMU's vsock needs the host's module vhost_vsock"
    );
    let mut command = command(guest)?;
    command.args(["-device", &format!("vhost-vsock-device,guest-cid={CID}")]);

    let begin = Instant::now();
    let _qemu = Child::new(command.spawn().context("starting qemu-system-x86_64")?);
    agent::answered(LIMIT, connect).await?;
    Ok(begin.elapsed())
}

async fn connect() -> Result<Socket> {
    Ok(Socket::new(
        VsockStream::connect(VsockAddr::new(CID, AGENT_PORT)).await?,
    ))
}

/// Starts a guest with an interface on this tap, as QEMU's own threads serve it.
pub(super) fn with_nic(guest: &Guest, tap: &OwnedFd, mac: [u8; 6]) -> Result<Child> {
    // QEMU inherits it under the same number.
    fcntl(tap, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut command = command(guest)?;
    let netdev = format!("tap,id=net,fd={},vhost=off", tap.as_raw_fd());
    command.args(["-netdev", &netdev]);
    let device = format!("virtio-net-device,netdev=net,mac={mac}");
    command.args(["-device", &device]);
    Ok(Child::new(
        command.spawn().context("starting qemu-system-x86_64")?,
    ))
}

/// A file as a disk of the guest.
pub(super) struct Disk<'a> {
    /// What the guest knows it by.
    pub(super) serial: &'static str,
    pub(super) path: &'a Path,
    pub(super) read_only: bool,
}

/// Starts a guest with these disks, read and written through the host's page cache as by default.
pub(super) fn with_disks(guest: &Guest, disks: &[Disk<'_>]) -> Result<Child> {
    let mut command = command(guest)?;
    add_disks(&mut command, disks);
    Ok(Child::new(
        command.spawn().context("starting qemu-system-x86_64")?,
    ))
}

/// A folder that a guest mounts.
pub(super) struct Shared<'a> {
    /// What the guest knows it by.
    pub(super) tag: &'static str,
    pub(super) folder: &'a Path,
}

/// QEMU and virtiofsd, which ends with it.
pub(super) struct Sharing {
    _qemu: Child,
    _virtiofsd: Child,
    /// Of the socket between the two.
    _folder: TempDir,
}

/// Starts a guest with a folder of the host, and these disks. Names and attributes of files count
/// for no time, pages until the file is opened again.
pub(super) fn with_folder(
    guest: &Guest,
    shared: &Shared<'_>,
    disks: &[Disk<'_>],
) -> Result<Sharing> {
    let folder = tempfile::Builder::new()
        .prefix("virtiofsd-")
        .tempdir_in("/run")?;
    let socket = folder.path().join("socket");
    let listener = OwnedFd::from(UnixListener::bind(&socket)?);
    // Inherited under the same number.
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut server = guest.qemu.command(VIRTIOFSD)?;
    server.arg(format!("--fd={}", listener.as_raw_fd()));
    server.arg("-o").arg(format!(
        "source={},cache=auto,timeout=0,log_level=err",
        shared.folder.display()
    ));
    server.stdin(Stdio::null()).stdout(Stdio::null());
    let virtiofsd = Child::new(server.spawn().context("starting virtiofsd")?);
    drop(listener);

    let mut command = command(guest)?;
    // What virtiofsd reads and writes of the guest's memory.
    let memory = format!("memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on");
    command.args(["-object", &memory]);
    command.args(["-machine", "memory-backend=memory"]);
    // virtiofsd knows no device older than virtio 1.0, which microvm's are by default.
    command.args(["-global", "virtio-mmio.force-legacy=false"]);
    add_disks(&mut command, disks);
    let chardev = format!("socket,id=shared,path={}", socket.display());
    command.args(["-chardev", &chardev]);
    let (tag, queue) = (shared.tag, SHARED_QUEUE);
    let device = format!("vhost-user-fs-device,chardev=shared,tag={tag},queue-size={queue}");
    command.args(["-device", &device]);
    let qemu = Child::new(command.spawn().context("starting qemu-system-x86_64")?);
    Ok(Sharing {
        _qemu: qemu,
        _virtiofsd: virtiofsd,
        _folder: folder,
    })
}

fn add_disks(command: &mut Command, disks: &[Disk<'_>]) {
    for disk in disks {
        let (serial, path) = (disk.serial, disk.path.display());
        let read_only = if disk.read_only { "on" } else { "off" };
        let drive = format!("file={path},if=none,format=raw,id={serial},read-only={read_only}");
        command.args(["-drive", &drive]);
        let device = format!("virtio-blk-device,drive={serial},serial={serial}");
        command.args(["-device", &device]);
    }
}

fn command(guest: &Guest) -> Result<Command> {
    let mut qemu = guest.qemu.command(PROGRAM)?;
    qemu.arg("-L").arg(&guest.qemu.folder);
    qemu.args([
        "-M",
        "microvm,rtc=off,pit=off,pic=off,isa-serial=off",
        "-accel",
        "kvm",
    ]);
    qemu.args(["-cpu", "host", "-smp", &PROCESSORS.to_string()]);
    qemu.args(["-m", &MEMORY_MIB.to_string()]);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]);
    qemu.arg("-kernel").arg(&guest.kernel);
    qemu.arg("-initrd").arg(&guest.initramfs);
    qemu.args(["-append", KERNEL_ARGS]);
    qemu.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(qemu)
}

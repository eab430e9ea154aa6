//! The peer: Debian's QEMU with its smallest machine, `microvm`, as its documentation has it: KVM,
//! virtio over MMIO, no legacy devices. Its guest's vsock is the kernel's (`vhost_vsock`), so the
//! sign of life is the same: the agent's first answer to `Hello`, not a line on a console.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_proto::AGENT_PORT;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::asynchronous::transport::Socket;

use super::{Guest, KERNEL_ARGS, LIMIT, MEMORY_MIB, agent};
use crate::images::elf;
use crate::process::Child;

/// The guest's address among this host's vsock guests. One runs at a time.
const CID: u32 = 42;

/// Where Debian installs QEMU, and what its microvm reads of its firmware.
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
const FIRMWARE: [&str; 4] = [
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/kvmvapic.bin",
];

/// A copy of QEMU with its libraries and its firmware.
#[derive(Debug)]
pub(super) struct Installation {
    folder: PathBuf,
}

impl Installation {
    /// Copies it into `folder`, which is made.
    pub(super) fn copy(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let program = Path::new(PROGRAM);
        let firmware = FIRMWARE.map(PathBuf::from);
        for file in elf::libraries(program)?.iter().chain(&firmware) {
            let name = file.file_name().context("a file has a name")?;
            fs::copy(file, folder.join(name))
                .with_context(|| format!("copying {}", file.display()))?;
        }
        fs::copy(program, folder.join("qemu")).context("copying QEMU")?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// A command that runs it.
    fn command(&self) -> Command {
        let mut qemu = Command::new(self.folder.join("qemu"));
        qemu.env("LD_LIBRARY_PATH", &self.folder);
        qemu.arg("-L").arg(&self.folder);
        qemu
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
    let mut command = command(guest);
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
    let mut command = command(guest);
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
    let mut command = command(guest);
    for disk in disks {
        let (serial, path) = (disk.serial, disk.path.display());
        let read_only = if disk.read_only { "on" } else { "off" };
        let drive = format!("file={path},if=none,format=raw,id={serial},read-only={read_only}");
        command.args(["-drive", &drive]);
        let device = format!("virtio-blk-device,drive={serial},serial={serial}");
        command.args(["-device", &device]);
    }
    Ok(Child::new(
        command.spawn().context("starting qemu-system-x86_64")?,
    ))
}

fn command(guest: &Guest) -> Command {
    let mut qemu = guest.qemu.command();
    qemu.args([
        "-M",
        "microvm,rtc=off,pit=off,pic=off,isa-serial=off",
        "-accel",
        "kvm",
    ]);
    qemu.args(["-cpu", "host", "-smp", "1", "-m", &MEMORY_MIB.to_string()]);
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
    qemu
}

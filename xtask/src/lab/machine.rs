//! The emulated host as QEMU's command line.

use std::path::Path;
use std::process::Command;

use super::Job;
use super::kernel::Kernel;

/// Files of one run, in a folder of its own.
#[derive(Debug)]
pub(super) struct Files<'a> {
    /// The initramfs.
    pub(super) initramfs: &'a Path,
    /// The kernel's messages go here.
    pub(super) console: &'a Path,
    /// The raw disk for `/var/lib/isopod`.
    pub(super) disk: &'a Path,
    /// QEMU listens here for commands of its monitor (QMP).
    pub(super) monitor: &'a Path,
    /// Unix sockets that this process listens on, each with its port's name.
    pub(super) ports: &'a [(&'static str, &'a Path)],
}

/// QEMU, ready to start. It dies with this process, however that ends.
pub(super) fn command(kernel: &Kernel, job: &Job, files: &Files<'_>) -> Command {
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args([
        "-M",
        "q35",
        "-cpu",
        "max,+svm",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    qemu.args(["-display", "none", "-nic", "none"]);
    qemu.args(["-m", &job.memory_mib.to_string()]);
    if job.icount {
        // One nanosecond is half an instruction: two instructions a nanosecond of the lab's clock.
        qemu.args([
            "-accel",
            "tcg,thread=single",
            "-smp",
            "1",
            "-icount",
            "shift=1,sleep=off",
        ]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi", "-smp", &job.cpus.to_string()]);
    }
    qemu.arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(files.initramfs);
    qemu.args([
        "-append",
        "console=ttyS0 quiet loglevel=4 panic=-1 maxcpus=1 mitigations=off audit=0",
    ]);
    qemu.args(["-serial", &format!("file:{}", comma(files.console))]);
    qemu.args([
        "-qmp",
        &format!("unix:{},server=on,wait=off", comma(files.monitor)),
    ]);

    share(&mut qemu, "root", Path::new("/"), "readonly=on");
    if let Some(folder) = &job.exchange {
        share(&mut qemu, "exchange", folder, "readonly=off");
    }
    let disk = format!(
        "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file={}",
        comma(files.disk)
    );
    qemu.args(["-drive", &disk, "-device", "virtio-blk-pci,drive=disk"]);
    qemu.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    for (name, socket) in files.ports {
        qemu.args([
            "-chardev",
            &format!("socket,id={name},path={}", comma(socket)),
        ]);
        qemu.args([
            "-device",
            &format!("virtserialport,chardev={name},name={name}"),
        ]);
    }
    if job.command.is_empty() {
        qemu.args([
            "-chardev",
            "stdio,id=shell,signal=off",
            "-device",
            "virtconsole,chardev=shell",
        ]);
    }
    qemu
}

/// Shares a folder by 9p, other file systems below it included.
fn share(qemu: &mut Command, tag: &str, folder: &Path, access: &str) {
    let file_system = format!(
        "local,id={tag},path={},security_model=none,multidevs=remap,{access}",
        comma(folder)
    );
    qemu.args(["-fsdev", &file_system]);
    qemu.args([
        "-device",
        &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]);
}

/// A path inside an option list, where a comma is written twice.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

//! `/dev/kvm`: there, permitted, and able to run a machine.
#![expect(
    unsafe_code,
    reason = "a KVM memory slot borrows the caller's memory by address"
)]

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};

use super::cpu::virtualises;
use super::{Check, Host};
use crate::chain::chain;

const DEVICE: &str = "kvm device";
const MACHINE: &str = "kvm machine";

/// How long a machine of three instructions may take, in an emulated lab too.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Adds AL and BL, writes the sum to port 0x80 and halts.
const PROGRAM: [u8; 5] = [
    0x00, 0xd8, // add al, bl
    0xe6, 0x80, // out 0x80, al
    0xf4, // hlt
];

const PAGE: usize = 4096;

/// Where the program lies in the guest, in bytes.
const ENTRY: u64 = 0x1000;

/// A page that is aligned as KVM wants it.
#[repr(align(4096))]
struct Page([u8; PAGE]);

/// The machine did not do what it was made for.
#[derive(Debug, thiserror::Error)]
enum MachineError {
    #[error("opening it")]
    Open(#[from] std::io::Error),
    #[error("its API has version {0}, not {KVM_API_VERSION}")]
    Version(i32),
    #[error("{call}")]
    Call {
        call: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("the test program did not run: {0}")]
    Exit(String),
    #[error("the test program did not end within {} s", MACHINE_TIMEOUT.as_secs())]
    Timeout,
}

/// Whether the device is there and may be used.
pub(super) fn device(host: &Host, path: &Path) -> Check {
    let file = host.path(path);
    let kind = match fs::metadata(&file) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Check::fail(
                DEVICE,
                format!("{} is missing", path.display()),
                "load the module kvm_amd or kvm_intel (modprobe); in a container, pass the device",
            );
        }
        Err(error) => {
            return Check::fail(
                DEVICE,
                format!("{}: {error}", path.display()),
                "run as root",
            );
        }
    };
    if !kind.is_char_device() {
        let found = format!("{} is no device", path.display());
        return Check::fail(
            DEVICE,
            found,
            "remove it and load the module kvm_amd or kvm_intel",
        );
    }
    match open(&file) {
        Ok(_) => Check::ok(DEVICE, format!("{} can be opened", path.display())),
        Err(error) => Check::fail(
            DEVICE,
            format!("{}: {error}", path.display()),
            "run as root, or as a member of the group kvm",
        ),
    }
}

/// Whether a machine really runs code, and would run an unmodified kernel.
pub(super) fn machine(host: &Host, path: &Path) -> Check {
    if let Err(error) = run_bounded(&host.path(path)) {
        return Check::fail(
            MACHINE,
            format!("{}: {}", path.display(), chain(&error)),
            "see the checks before; `dmesg | grep -i kvm` has the kernel's reasons",
        );
    }
    let paravirtual = host.path("/sys/module/kvm_pvm").exists();
    if paravirtual || !virtualises(host) {
        return Check::fail(
            MACHINE,
            "runs a few instructions, but is paravirtual (PVM): the processor shows neither svm \
             nor vmx, and an unmodified kernel does not start",
            "use a machine with hardware virtualisation; for development, `cargo xtask lab` \
             emulates one",
        );
    }
    Check::ok(MACHINE, "created and ran code")
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Runs the program on a thread that is left behind, until the process ends, if it hangs.
fn run_bounded(path: &Path) -> Result<(), MachineError> {
    let device = open(path)?;
    let (sender, result) = mpsc::channel();
    let thread = std::thread::Builder::new().name("kvm".to_owned());
    thread.spawn(move || {
        // Nobody listens any more when it took too long.
        let _late = sender.send(run(device));
    })?;
    result
        .recv_timeout(MACHINE_TIMEOUT)
        .unwrap_or(Err(MachineError::Timeout))
}

fn run(device: File) -> Result<(), MachineError> {
    let call = |call| move |source| MachineError::Call { call, source };
    let mut page = Box::new(Page([0; PAGE]));
    page.0[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    // SAFETY: the descriptor is owned and given away; that it is KVM's is checked next.
    let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(MachineError::Version(version));
    }
    let vm = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: ENTRY,
        memory_size: PAGE as u64,
        userspace_addr: (&raw const *page) as u64,
    };
    // SAFETY: the slot is the whole of `page`, which outlives `vm` and its vCPU: both are dropped
    // before it, in reverse order of declaration, on every way out of this function.
    unsafe { vm.set_user_memory_region(slot) }.map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(call("KVM_CREATE_VCPU"))?;
    let mut special = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special).map_err(call("KVM_SET_SREGS"))?;
    let mut registers = vcpu.get_regs().map_err(call("KVM_GET_REGS"))?;
    registers.rip = ENTRY;
    registers.rax = 40;
    registers.rbx = 2;
    registers.rflags = 2; // bit 1 is always set
    vcpu.set_regs(&registers).map_err(call("KVM_SET_REGS"))?;
    match vcpu.run().map_err(call("KVM_RUN"))? {
        VcpuExit::IoOut(0x80, [42]) => Ok(()),
        other => Err(MachineError::Exit(format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const KVM: &str = "/dev/kvm";

    fn host(cpuinfo: &str) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("proc")).unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("proc/cpuinfo"), cpuinfo).unwrap();
        let host = Host {
            root: root.path().into(),
        };
        (root, host)
    }

    #[test]
    fn missing_device_is_told_with_the_modules_to_load() {
        let (_root, host) = host("");
        let check = device(&host, Path::new(KVM));
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.advice.contains("modprobe"), "{check:?}");
        assert_eq!(machine(&host, Path::new(KVM)).verdict, Verdict::Fail);
    }

    #[test]
    fn plain_file_is_no_device() {
        let (root, host) = host("");
        fs::write(root.path().join("dev/kvm"), "").unwrap();
        let check = device(&host, Path::new(KVM));
        assert!(check.found.ends_with("is no device"), "{check:?}");
        assert_eq!(machine(&host, Path::new(KVM)).verdict, Verdict::Fail);
    }

    #[test]
    fn device_that_is_not_kvm_fails() {
        let (root, host) = host("flags : svm\n");
        std::os::unix::fs::symlink("/dev/null", root.path().join("dev/kvm")).unwrap();
        assert_eq!(device(&host, Path::new(KVM)).verdict, Verdict::Ok);
        let check = machine(&host, Path::new(KVM));
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("API"), "{check:?}");
    }

    #[test]
    fn kvm_without_the_processors_help_is_paravirtual() {
        if run_bounded(Path::new(KVM)).is_err() {
            return isopod_tests::skip("/dev/kvm runs no code here");
        }
        let (root, without) = host("flags : fpu\n");
        std::os::unix::fs::symlink(KVM, root.path().join("dev/kvm")).unwrap();
        let check = machine(&without, Path::new(KVM));
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("PVM"), "{check:?}");
        fs::write(root.path().join("proc/cpuinfo"), "flags : fpu svm\n").unwrap();
        assert_eq!(machine(&without, Path::new(KVM)).verdict, Verdict::Ok);
    }
}

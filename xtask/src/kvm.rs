//! Whether this machine runs microVMs itself.
//!
//! A `/dev/kvm` alone does not say so: a paravirtual (PVM) host has one that cannot run an
//! unmodified kernel. Such a host's CPU shows neither `svm` nor `vmx`, so both are asked for: the
//! CPU flag, and a machine that really runs a few instructions in real mode.
#![expect(
    unsafe_code,
    reason = "a KVM memory slot borrows the caller's memory by address"
)]

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

/// Adds the low byte of AX and BX, writes the sum to port 0x80 and halts.
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

/// Returns why KVM is not usable here, if so.
pub(crate) fn unusable() -> Option<String> {
    probe().err().map(|error| format!("{error:#}"))
}

fn probe() -> Result<()> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    ensure!(has_flag(&cpu), "the CPU shows neither svm nor vmx");
    run_instructions()
}

fn has_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "svm" || flag == "vmx")
        })
}

/// Runs [`PROGRAM`] in a machine of one page, and checks what it wrote.
fn run_instructions() -> Result<()> {
    let mut page = Box::new(Page([0; PAGE]));
    page.0[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    let kvm = Kvm::new().context("opening /dev/kvm")?;
    let machine = kvm.create_vm().context("creating a machine")?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: ENTRY,
        memory_size: PAGE as u64,
        userspace_addr: (&raw const *page) as u64,
    };
    // SAFETY: the slot is the whole of `page`, which outlives `machine` and its vCPU: both are
    // dropped before it, in reverse order of declaration, on every way out of this function.
    unsafe { machine.set_user_memory_region(slot) }.context("giving the machine memory")?;
    let mut vcpu = machine.create_vcpu(0).context("creating a vCPU")?;

    let mut special = vcpu.get_sregs().context("reading registers")?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special).context("setting registers")?;
    let mut registers = vcpu.get_regs().context("reading registers")?;
    registers.rip = ENTRY;
    registers.rax = 40;
    registers.rbx = 2;
    registers.rflags = 2; // bit 1 is always set
    vcpu.set_regs(&registers).context("setting registers")?;

    match vcpu.run().context("running a vCPU")? {
        VcpuExit::IoOut(0x80, [42]) => Ok(()),
        other => bail!("the test program did not run: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_with_svm_or_vmx_is_told_from_one_without() {
        assert!(has_flag("processor: 0\nflags\t\t: fpu svm sse\n"));
        assert!(has_flag("flags : vmx\n"));
        assert!(!has_flag("flags\t\t: fpu svm_lock sse\nbugs: vmx\n"));
    }

    #[test]
    fn the_verdict_is_reached_without_a_panic() {
        if let Some(reason) = unusable() {
            assert!(!reason.is_empty());
        }
    }
}

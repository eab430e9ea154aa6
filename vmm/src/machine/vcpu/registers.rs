//! What a vCPU's registers hold when it first runs.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::machine::kvm::{KvmError, failed};
use crate::machine::layout;

/// Memory types are write-back wherever nothing else says so: MTRRs on, type 6.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// String instructions in their fast form.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;

/// Protected mode, and the bit that has no meaning but reads as one.
const CR0_PROTECTED: u64 = 1 << 0 | 1 << 4;
/// The flag that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Segment types (Intel SDM volume 3 section 3.4.5): accessed code and data, busy task.
const CODE: u8 = 0x0b;
const DATA: u8 = 0x03;
const BUSY_TASK: u8 = 0x0b;

/// A vCPU's registers could not be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    /// KVM refused.
    #[error("setting the registers of a vCPU")]
    Kvm(#[from] KvmError),
    /// KVM stopped at a model-specific register.
    #[error("KVM does not take the model-specific registers")]
    Msr,
}

/// Model-specific registers, for every vCPU.
///
/// # Errors
///
/// [`RegisterError`].
pub(crate) fn set_msrs(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    ];
    let msrs = Msrs::from_entries(&entries).expect("two entries are not too many");
    let taken = vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
    if taken == entries.len() {
        Ok(())
    } else {
        Err(RegisterError::Msr)
    }
}

/// The state in which the PVH boot protocol enters a kernel (Xen, "x86/HVM direct boot ABI"): flat
/// 32-bit protected mode without paging, EBX at the start info.
///
/// # Errors
///
/// [`RegisterError`].
pub(crate) fn enter_pvh(vcpu: &VcpuFd, entry: u32) -> Result<(), RegisterError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    sregs.cs = segment(0x08, CODE);
    for data in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *data = segment(0x10, DATA);
    }
    sregs.tr = kvm_segment {
        limit: 0x67,
        type_: BUSY_TASK,
        present: 1,
        ..Default::default()
    };
    sregs.cr0 = CR0_PROTECTED;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: u64::from(entry),
        rbx: layout::PVH_START_INFO,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;
    Ok(())
}

/// A flat 32-bit segment of 4 GiB.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

//! What the guest's processors say about themselves.
//!
//! The base is what KVM supports on this host, so guests may use everything that it can virtualise.
//! Changed are topology and identity, and what a pod has no use for is taken away: nested
//! virtualisation, performance counters, processor tracing, enclaves.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// Leaf 7, EBX.
const SGX: u32 = 1 << 2;
const PROCESSOR_TRACE: u32 = 1 << 25;
/// Leaf 7, ECX.
const SGX_LAUNCH_CONTROL: u32 = 1 << 30;
/// Leaf `8000_0001`, ECX.
const SVM: u32 = 1 << 2;
const PERF_COUNTERS_CORE: u32 = 1 << 23;
const PERF_COUNTERS_NORTHBRIDGE: u32 = 1 << 24;

/// Level types of the extended topology leaf (Intel SDM volume 2A, CPUID leaf 0BH).
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// Leaves that read as zero.
const EMPTY: &[u32] = &[
    0x0a,        // performance counters (Intel)
    0x12,        // SGX
    0x14,        // processor trace
    0x1c,        // last branch records
    0x8000_000a, // SVM
    0x8000_0022, // performance counters (AMD)
];

/// The entries for the vCPU with APIC id `id` of `max_vcpus`, each a core of one package.
///
/// `None` when there are more entries than KVM takes, which it cannot have returned.
pub(crate) fn for_vcpu(supported: &CpuId, id: u8, max_vcpus: u8) -> Option<CpuId> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // These two describe levels of topology and are written anew below.
        .filter(|entry| !matches!(entry.function, 0x0b | 0x1f))
        .copied()
        .collect();
    for entry in &mut entries {
        adapt(entry, id, max_vcpus);
    }
    if entries.iter().any(|e| e.function == 0 && e.eax >= 0x0b) {
        entries.extend(topology(id, max_vcpus));
    }
    CpuId::from_entries(&entries).ok()
}

/// Bits of an APIC id that name the core in the package.
fn core_bits(max_vcpus: u8) -> u32 {
    u32::from(max_vcpus).next_power_of_two().trailing_zeros()
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u8, max_vcpus: u8) {
    let last = u32::from(max_vcpus - 1);
    match entry.function {
        0x01 => {
            entry.ebx &= 0x0000_ffff;
            entry.ebx |= u32::from(max_vcpus) << 16 | u32::from(id) << 24;
            entry.ecx &= !(VMX | PDCM);
            entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
            entry.edx &= !HTT;
            if max_vcpus > 1 {
                entry.edx |= HTT;
            }
        }
        // Caches (Intel): the third level belongs to the package, the others to a core.
        0x04 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax &= 0x0000_3fff;
            entry.eax |= sharing << 14 | last << 26;
        }
        // Power management: nothing to manage. A timer that never stops stays (ARAT).
        0x06 => {
            entry.eax &= 1 << 2;
            (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
        }
        0x07 if entry.index == 0 => {
            entry.ebx &= !(SGX | PROCESSOR_TRACE);
            entry.ecx &= !SGX_LAUNCH_CONTROL;
        }
        0x8000_0001 => {
            entry.ecx &= !(SVM | PERF_COUNTERS_CORE | PERF_COUNTERS_NORTHBRIDGE);
        }
        // Cores of the package (AMD): APIC id bits, and their number less one.
        0x8000_0008 => {
            entry.ecx = core_bits(max_vcpus) << 12 | last;
        }
        // Caches (AMD).
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 { last } else { 0 };
            entry.eax &= 0x0000_3fff;
            entry.eax |= sharing << 14;
        }
        // Topology (AMD): one thread per core, one node.
        0x8000_001e => {
            entry.eax = u32::from(id);
            entry.ebx = u32::from(id);
            entry.ecx = 0;
        }
        leaf if EMPTY.contains(&leaf) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

/// The extended topology leaf: one thread per core, all cores in one package.
fn topology(id: u8, max_vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    const SIGNIFICANT_INDEX: u32 = 1;
    let level = |index, shift, threads, kind| kvm_cpuid_entry2 {
        function: 0x0b,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: threads,
        ecx: kind | index,
        edx: u32::from(id),
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_SMT),
        level(1, core_bits(max_vcpus), u32::from(max_vcpus), LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: registers[0],
            ebx: registers[1],
            ecx: registers[2],
            edx: registers[3],
            ..Default::default()
        }
    }

    fn adapted(entries: &[kvm_cpuid_entry2], id: u8, max_vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        let supported = CpuId::from_entries(entries).unwrap();
        let cpuid = for_vcpu(&supported, id, max_vcpus).unwrap();
        cpuid.as_slice().to_vec()
    }

    #[test]
    fn nested_virtualisation_and_counters_are_hidden() {
        let entries = adapted(
            &[
                leaf(1, 0, [0, 0, u32::MAX, u32::MAX]),
                leaf(0x0a, 0, [u32::MAX; 4]),
                leaf(0x8000_0001, 0, [u32::MAX; 4]),
                leaf(0x8000_000a, 0, [u32::MAX; 4]),
            ],
            0,
            1,
        );
        assert_eq!(entries[0].ecx & VMX, 0);
        assert_eq!(entries[0].edx & HTT, 0);
        assert_ne!(entries[0].ecx & HYPERVISOR, 0);
        assert_eq!((entries[1].eax, entries[3].edx), (0, 0));
        assert_eq!(entries[2].ecx & SVM, 0);
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id_in_all_leaves_that_tell_it() {
        for id in [0, 5, 63] {
            let entries = adapted(
                &[
                    leaf(0, 0, [0x0d, 0, 0, 0]),
                    leaf(1, 0, [0; 4]),
                    leaf(0x0b, 0, [9; 4]),
                    leaf(0x8000_001e, 0, [9; 4]),
                ],
                id,
                64,
            );
            assert_eq!(entries[1].ebx >> 24, u32::from(id));
            assert_eq!((entries[1].ebx >> 16) & 0xff, 64);
            assert_eq!(entries[2].eax, u32::from(id));
            let levels = &entries[3..];
            assert_eq!(levels.len(), 3);
            assert!(levels.iter().all(|level| level.edx == u32::from(id)));
            assert_eq!(levels[1].eax, 6);
        }
    }

    #[test]
    fn only_the_last_cache_level_is_shared() {
        let level = |level: u32| leaf(4, level, [1 | level << 5 | 7 << 14, 0, 0, 0]);
        let entries = adapted(&[level(1), level(3)], 0, 4);
        assert_eq!((entries[0].eax >> 14) & 0xfff, 0);
        assert_eq!((entries[1].eax >> 14) & 0xfff, 3);
    }
}

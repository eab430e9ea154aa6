//! From what a guest said to the CRI's messages.
//!
//! What is absent was not told: a limit that is not set, a layer that was not counted yet.

use isopod_proto::agent::{
    CgroupStats, CpuStats, InterfaceStats, IoStats, LayerStats, MemoryStats, Pressure, Stall,
};
use isopod_proto::cri;
use isopod_proto::cri::UInt64Value;

use super::{CpuRate, Sample};
use crate::container::Container;
use crate::sandbox::Sandbox;

/// The first interface of every pod (CNI specification, section "Attachment parameters").
const DEFAULT_INTERFACE: &str = "eth0";

/// One container's statistics; `None` when the guest said nothing of it.
pub(crate) fn container_stats(
    container: &Container,
    attributes: cri::ContainerAttributes,
    scratch: &str,
    sample: &Sample,
) -> Option<cri::ContainerStats> {
    let told = sample.guest.containers.get(&container.id)?;
    let group = told.cgroup.as_ref()?;
    let group = Group {
        stats: group,
        at_ns: sample.at_ns,
    };
    Some(cri::ContainerStats {
        attributes: Some(attributes),
        cpu: group.cpu(&container.cpu_rate, sample.guest.at_ns),
        memory: group.memory(),
        writable_layer: told
            .writable_layer
            .as_ref()
            .map(|layer| writable_layer(layer, scratch, sample.at_ns)),
        swap: group.swap(),
        io: group.io(),
    })
}

/// One pod's statistics.
pub(crate) fn sandbox_stats(
    sandbox: &Sandbox,
    attributes: cri::PodSandboxAttributes,
    containers: Vec<cri::ContainerStats>,
    sample: &Sample,
) -> cri::PodSandboxStats {
    let group = Group {
        stats: &sample.guest.sandbox,
        at_ns: sample.at_ns,
    };
    cri::PodSandboxStats {
        attributes: Some(attributes),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: group.cpu(&sandbox.cpu_rate, sample.guest.at_ns),
            memory: group.memory(),
            network: network(&sample.guest.interfaces, sample.at_ns),
            process: Some(cri::ProcessUsage {
                timestamp: sample.at_ns,
                process_count: number(sample.guest.sandbox.processes),
            }),
            containers,
            io: group.io(),
        }),
        windows: None,
    }
}

struct Group<'a> {
    stats: &'a CgroupStats,
    at_ns: i64,
}

impl Group<'_> {
    fn cpu(&self, rate: &CpuRate, guest_ns: u64) -> Option<cri::CpuUsage> {
        let cpu: &CpuStats = self.stats.cpu.as_ref()?;
        let used_ns = cpu.usage_us.saturating_mul(1_000);
        Some(cri::CpuUsage {
            timestamp: self.at_ns,
            usage_core_nano_seconds: number(used_ns),
            usage_nano_cores: rate.sample(guest_ns, used_ns).and_then(number),
            psi: cpu.pressure.as_ref().map(psi),
        })
    }

    fn memory(&self) -> Option<cri::MemoryUsage> {
        let memory: &MemoryStats = self.stats.memory.as_ref()?;
        let working_set = working_set(memory);
        let available = (memory.limit > 0).then(|| memory.limit.saturating_sub(working_set));
        Some(cri::MemoryUsage {
            timestamp: self.at_ns,
            working_set_bytes: number(working_set),
            available_bytes: available.and_then(number),
            usage_bytes: number(memory.usage),
            rss_bytes: number(memory.anon),
            page_faults: number(memory.page_faults),
            major_page_faults: number(memory.major_page_faults),
            psi: memory.pressure.as_ref().map(psi),
        })
    }

    /// Guests have no swap to give.
    fn swap(&self) -> Option<cri::SwapUsage> {
        let memory: &MemoryStats = self.stats.memory.as_ref()?;
        Some(cri::SwapUsage {
            timestamp: self.at_ns,
            swap_available_bytes: number(0),
            swap_usage_bytes: number(memory.swap),
        })
    }

    fn io(&self) -> Option<cri::IoUsage> {
        let io: &IoStats = self.stats.io.as_ref()?;
        Some(cri::IoUsage {
            timestamp: self.at_ns,
            psi: io.pressure.as_ref().map(psi),
        })
    }
}

/// What the kernel cannot take away at no cost, as the kubelet counts it.
pub(super) fn working_set(memory: &MemoryStats) -> u64 {
    memory.usage.saturating_sub(memory.inactive_file)
}

fn writable_layer(layer: &LayerStats, scratch: &str, at_ns: i64) -> cri::FilesystemUsage {
    let age_ns = i64::try_from(layer.age_ns).unwrap_or(i64::MAX);
    cri::FilesystemUsage {
        timestamp: at_ns.saturating_sub(age_ns).max(1),
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: scratch.to_owned(),
        }),
        used_bytes: number(layer.bytes),
        inodes_used: number(layer.inodes),
    }
}

/// Nothing for a pod without interfaces: a kubelet takes one for granted where there is something.
fn network(interfaces: &[InterfaceStats], at_ns: i64) -> Option<cri::NetworkUsage> {
    let default = interfaces
        .iter()
        .position(|interface| interface.name == DEFAULT_INTERFACE)
        .unwrap_or(0);
    let others = interfaces
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != default);
    Some(cri::NetworkUsage {
        timestamp: at_ns,
        default_interface: Some(interface(interfaces.get(default)?)),
        interfaces: others.map(|(_, other)| interface(other)).collect(),
    })
}

fn interface(counted: &InterfaceStats) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: counted.name.clone(),
        rx_bytes: number(counted.rx_bytes),
        rx_errors: number(counted.rx_errors),
        tx_bytes: number(counted.tx_bytes),
        tx_errors: number(counted.tx_errors),
    }
}

fn psi(pressure: &Pressure) -> cri::PsiStats {
    cri::PsiStats {
        full: pressure.full.as_ref().map(stall),
        some: pressure.some.as_ref().map(stall),
    }
}

/// Averages are percentages; what a guest says beyond is not one.
fn stall(stall: &Stall) -> cri::PsiData {
    let percent = |average: f64| match average.is_finite() {
        true => average.clamp(0.0, 100.0),
        false => 0.0,
    };
    cri::PsiData {
        total: stall.total_us,
        avg10: percent(stall.avg10),
        avg60: percent(stall.avg60),
        avg300: percent(stall.avg300),
    }
}

fn number(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> InterfaceStats {
        InterfaceStats {
            name: name.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn first_interface_is_eth0_and_is_not_among_the_others() {
        let told = network(&[named("net1"), named("eth0"), named("net2")], 1).unwrap();
        assert_eq!(told.default_interface.unwrap().name, "eth0");
        let others: Vec<_> = told.interfaces.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(others, ["net1", "net2"]);
    }

    #[test]
    fn pod_without_interfaces_tells_nothing_of_its_network() {
        assert_eq!(network(&[], 1), None);
    }

    #[test]
    fn memory_without_a_limit_has_no_bound_to_tell() {
        let stats = |limit| CgroupStats {
            memory: Some(MemoryStats {
                usage: 100,
                inactive_file: 30,
                limit,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let memory = |limit| {
            let stats = stats(limit);
            Group {
                stats: &stats,
                at_ns: 1,
            }
            .memory()
            .unwrap()
        };
        assert_eq!(memory(0).working_set_bytes, number(70));
        assert_eq!(memory(0).available_bytes, None);
        assert_eq!(memory(90).available_bytes, number(20));
    }

    #[test]
    fn averages_that_are_none_are_brought_into_range() {
        let told = stall(&Stall {
            avg10: f64::NAN,
            avg60: -1.0,
            avg300: 1e300,
            total_us: 7,
            ..Default::default()
        });
        assert_eq!(
            (told.avg10, told.avg60, told.avg300, told.total),
            (0.0, 0.0, 100.0, 7)
        );
    }
}

//! What a guest says that it uses.
//!
//! All of it is the guest's word. Numbers are passed on as they are, since nothing is decided by
//! them; ids, names and lengths are checked.

use std::collections::BTreeMap;

use isopod_proto::agent::{
    CgroupStats, ContainerStats, InterfaceStats, StatsRequest, StatsResponse,
};

use super::error::{VmError, printable};
use crate::id::ContainerId;

/// Most containers and interfaces that an agent may tell of.
const CONTAINERS_MAX: usize = 4096;
const INTERFACES_MAX: usize = 64;

/// Longest name of an interface that is passed on, in characters; Linux has 15 bytes.
const INTERFACE_NAME_MAX: usize = 15;

/// What a guest is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask<'a> {
    /// All that runs.
    All,
    /// All that runs, and what it has open.
    AllInDetail,
    /// One container.
    One(&'a ContainerId),
}

impl Ask<'_> {
    pub(super) fn request(self) -> StatsRequest {
        let (container_id, open_files) = match self {
            Self::All => (String::new(), false),
            Self::AllInDetail => (String::new(), true),
            Self::One(id) => (id.to_string(), false),
        };
        StatsRequest {
            container_id,
            open_files,
            ..Default::default()
        }
    }
}

/// A guest's answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct GuestStats {
    /// When: nanoseconds since the guest booted.
    pub(crate) at_ns: u64,
    /// All containers together.
    pub(crate) sandbox: CgroupStats,
    /// The pod's interfaces but loopback.
    pub(crate) interfaces: Vec<InterfaceStats>,
    /// By container.
    pub(crate) containers: BTreeMap<ContainerId, ContainerStats>,
}

impl GuestStats {
    /// Checks an answer.
    pub(super) fn check(mut answer: StatsResponse) -> Result<Self, VmError> {
        let bad = |reason| super::agent::bad_reply("Stats", reason);
        if answer.containers.len() > CONTAINERS_MAX {
            return Err(bad("too many containers"));
        }
        if answer.interfaces.len() > INTERFACES_MAX {
            return Err(bad("too many interfaces"));
        }
        for interface in &mut answer.interfaces {
            // A container chooses it, if it may.
            interface.name = printable(&interface.name)
                .chars()
                .take(INTERFACE_NAME_MAX)
                .collect();
        }
        let mut containers = BTreeMap::new();
        for container in answer.containers {
            let id = container.container_id.parse::<ContainerId>();
            let id = id.map_err(|_error| bad("an id that is none"))?;
            containers.insert(id, container);
        }
        Ok(Self {
            at_ns: answer.at_ns,
            sandbox: answer.sandbox.unwrap_or_default(),
            interfaces: answer.interfaces,
            containers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str) -> ContainerStats {
        ContainerStats {
            container_id: id.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn id_that_is_none_and_endless_lists_are_refused() {
        let odd = StatsResponse {
            containers: vec![container("../../etc")],
            ..Default::default()
        };
        GuestStats::check(odd).unwrap_err();
        let many = StatsResponse {
            interfaces: vec![InterfaceStats::default(); INTERFACES_MAX + 1],
            ..Default::default()
        };
        GuestStats::check(many).unwrap_err();
    }

    #[test]
    fn name_of_an_interface_comes_without_control_characters_and_short() {
        let interface = InterfaceStats {
            name: "e\n\"\u{1b}[31m".repeat(50),
            ..Default::default()
        };
        let answer = StatsResponse {
            interfaces: vec![interface],
            ..Default::default()
        };
        let name = GuestStats::check(answer).unwrap().interfaces[0]
            .name
            .clone();
        assert!(name.chars().count() <= INTERFACE_NAME_MAX);
        assert!(
            !name.contains(|letter: char| letter.is_control()),
            "{name:?}"
        );
    }
}

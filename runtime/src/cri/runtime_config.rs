//! `RuntimeConfig`: which cgroup driver the kubelet should use.
//!
//! The daemon makes no cgroups of its own on the host, so the answer is the node's: systemd's where
//! systemd runs, since two managers of one hierarchy do not get along.

use std::path::Path;

use isopod_proto::cri::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigRequest, RuntimeConfigResponse,
};

/// There while systemd is the init system (`sd_booted(3)`).
const SYSTEMD: &str = "/run/systemd/system";

pub(super) fn runtime_config(_request: &RuntimeConfigRequest) -> RuntimeConfigResponse {
    let systemd = Path::new(SYSTEMD).is_dir();
    let driver = if systemd {
        CgroupDriver::Systemd
    } else {
        CgroupDriver::Cgroupfs
    };
    let linux = LinuxRuntimeConfiguration {
        cgroup_driver: driver.into(),
    };
    RuntimeConfigResponse { linux: Some(linux) }
}

//! `RuntimeConfig`: which cgroup driver the kubelet should use.
//!
//! The answer is the node's: systemd's where systemd runs, since two managers of one hierarchy do
//! not get along. The daemon takes pods of either driver.

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

//! The wire contracts between Isopod's processes, and with the kubelet.
//!
//! - [`cri`]: the Container Runtime Interface, served by the daemon over gRPC.
//! - [`images`]: what `isopod pull` and `isopod image` ask beyond it, on the same socket.
//! - [`agent`]: what the daemon asks of the agent inside the guest, over ttrpc.
//! - [`vmm`]: what the daemon asks of a sandbox's VMM, over ttrpc.
//! - [`stream`]: the framing of process streams (stdin, stdout, stderr) beside the agent's service.
//! - [`descriptors`]: how file descriptors reach a VMM.

pub mod descriptors;
pub mod stream;

/// Version of [`agent`] and [`stream`] together. Raised with every incompatible change.
pub const AGENT_PROTOCOL_VERSION: u32 = 1;

/// vsock port on which the agent serves [`agent`].
pub const AGENT_PORT: u32 = 1024;

/// vsock port on which the agent serves [`stream`]s.
pub const STREAM_PORT: u32 = 1025;

/// Extended attribute of the root of the volumes' file system by which the agent's thread that
/// replays changes makes itself known to the server: from then on its requests change nothing, and
/// are answered as if they had. The value is the names, each ended by a NUL, that its next look-ups
/// must not find; other names that are not there are found.
pub const REPLAY_XATTR: &str = "trusted.isopod.replay";

/// What the guest mounts its virtio-fs device by: the tag of virtio 1.2 section 5.11.4.
pub const VOLUMES_TAG: &str = "volumes";

/// The Container Runtime Interface, `runtime.v1`.
#[allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Images beyond the CRI: progress, archives.
#[allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
pub mod images {
    tonic::include_proto!("isopod.images.v1");
}

/// The agent's messages.
#[allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The agent's service and client.
#[allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
pub mod agent_ttrpc {
    use super::agent;
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// The VMM's messages.
#[allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
pub mod vmm {
    include!(concat!(env!("OUT_DIR"), "/vmm.rs"));
}

/// The VMM's service and client.
#[allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated"
)]
pub mod vmm_ttrpc {
    use super::vmm;
    include!(concat!(env!("OUT_DIR"), "/vmm_ttrpc.rs"));
}

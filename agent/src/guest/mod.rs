//! All that knows that this is a machine: PID 1's set-up, and its end.
//!
//! ```text
//!  kernel ──> mounts ──> listen on vsock ──> answer Hello
//!                                              └─> SetUpSandbox: settings first, then processors
//!                                              └─> PowerOff: the service's end, then the machine's
//! ```
//!
//! The kernel starts the agent as `/init` of its image or initramfs, without a console. The way to the
//! first answer is short: only what the service needs to listen comes before it. A panic aborts,
//! which makes the kernel panic, which the VMM reports.

mod log;
mod loopback;
mod memory;
mod mounts;
mod processors;
mod settings;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use isopod_proto::{AGENT_PORT, STREAM_PORT};
use nix::sys::reboot::{RebootMode, reboot};
use tokio::runtime::Builder;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use ttrpc::asynchronous::transport::Listener as RpcListener;

use crate::serve::{ServeError, serve};
use crate::service::Surroundings;
use crate::storage::{Bus, Disks, Volumes};
use crate::stream::Listener;

/// Everything that the agent writes, in memory; only the scratch disk is large.
const STATE_DIR: &str = "/run/isopod-agent";

/// Parent of containers' cgroups.
const CGROUP: &str = "/isopod";

/// PID 1's main function. Returning from it makes the kernel panic.
pub(crate) fn run() -> ExitCode {
    if let Err(error) = mounts::mount_all() {
        log::last_words(&format!("mounting: {error}"));
        return ExitCode::FAILURE;
    }
    log::install();
    match serve_vsock() {
        Ok(()) => match power_off() {
            Ok(never) => match never {},
            Err(error) => log::last_words(&format!("powering off: {error}")),
        },
        Err(error) => log::last_words(&crate::service::chain(&error)),
    }
    ExitCode::FAILURE
}

fn serve_vsock() -> Result<(), ServeError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::io("starting the runtime"))?;
    runtime.block_on(async {
        let rpc = RpcListener::from(listen(AGENT_PORT)?);
        let streams = Listener::Vsock(listen(STREAM_PORT)?);
        let surroundings = Surroundings {
            state_dir: PathBuf::from(STATE_DIR),
            disks: Disks::Bus(Bus),
            volumes: Volumes::device(Path::new(STATE_DIR).join("volumes")),
            cgroup: PathBuf::from(CGROUP),
            search_bus: Bus::search,
            before_set_up: settings::apply,
            set_processors: processors::set_up,
            use_memory: memory::prepare,
            after_set_up: processors::bring_up,
        };
        serve(rpc, streams, surroundings).await
    })
}

fn listen(port: u32) -> Result<VsockListener, ServeError> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map_err(ServeError::io("listening on vsock"))
}

/// Everything is unmounted by now that can be.
fn power_off() -> nix::Result<Infallible> {
    reboot(RebootMode::RB_POWER_OFF)
}

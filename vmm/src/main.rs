//! The virtual machine monitor: one process, one sandbox.
//!
//! `isopod-vmm --dir DIR` takes the descriptors that it inherits ([`descriptors`]), serves the
//! control service ([`control`]) and waits for `Start`. What it needs is handed to it or lies in
//! DIR, so nothing else is opened by path. When the guest ends it writes `exit.json` into DIR,
//! lets the container logs come to their end, and exits: with 0 when somebody wanted that end.
//!
//! - [`machine`]: memory, vCPUs, ACPI, and how they come together.
//! - [`pci`]: the bus. [`virtio`]: the devices and their transport.
//! - [`log`]: what containers print, written to files.
//!
//! Threads: this one (control, a current-thread runtime), one per vCPU, one or more per device.

mod control;
mod descriptors;
mod log;
mod machine;
mod pci;
mod virtio;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use isopod_proto::descriptors as names;
use isopod_proto::vmm_ttrpc::create_machine;
use tokio::sync::mpsc;
use tracing::level_filters::LevelFilter;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use self::control::Control;
use self::descriptors::Descriptors;
use self::machine::ending::Ending;

/// How long container logs may take to come to their end once the guest is gone.
const LOGS_TIMEOUT: Duration = Duration::from_secs(10);

/// Environment variable with the log level: `error`, `warn`, `info`, `debug` or `trace`.
const LOG_LEVEL: &str = "ISOPOD_VMM_LOG";

/// Runs the virtual machine of one sandbox. Started by `isopod serve`.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The sandbox's state directory.
    #[arg(long)]
    dir: PathBuf,
}

#[expect(unsafe_code, reason = "inherited descriptors are taken over")]
fn main() -> anyhow::Result<ExitCode> {
    share_one_heap();
    let arguments = Arguments::parse();
    // SAFETY: once, and nothing but the parsing of arguments, which opens nothing, was before.
    let descriptors = unsafe { descriptors::inherited::take_all() }?;
    tracing_subscriber::fmt()
        .with_max_level(log_level())
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if let Err(error) = descriptors::limit::raise() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let ending = runtime.block_on(run(&arguments.dir, Arc::new(descriptors)))?;
    // A log thread that is stuck on its file must not keep the process.
    runtime.shutdown_background();
    Ok(if ending.is_orderly() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Keeps glibc from a heap for each thread (mallopt(3), `M_ARENA_MAX`). Devices come and go with their
/// threads, and each heap is memory that the sandbox is charged for; what threads do most of
/// the time, moving the guest's bytes, needs none.
#[expect(unsafe_code, reason = "mallopt has no safe wrapper here")]
fn share_one_heap() {
    // SAFETY: it takes no pointer, and no other thread runs yet. What it returns says only whether the
    // parameter is known.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// `info`, or what the environment variable says.
fn log_level() -> LevelFilter {
    std::env::var(LOG_LEVEL)
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::INFO)
}

/// Serves until the guest has ended and everything about it is written.
async fn run(dir: &Path, descriptors: Arc<Descriptors>) -> anyhow::Result<Ending> {
    let control_socket = descriptors.take(names::CONTROL)?;
    let descriptor_socket = descriptors.take(names::DESCRIPTORS)?;
    let (ended, mut endings) = mpsc::unbounded_channel();
    let control = Arc::new(Control::new(
        Arc::clone(&descriptors),
        dir.to_owned(),
        ended,
    ));
    let mut server = Server::new()
        .add_listener(control_listener(control_socket).context("the control socket")?)
        .register_service(create_machine(Arc::clone(&control) as _));
    server.start().await.context("serving the control socket")?;

    let ending = tokio::select! {
        ending = endings.recv() => ending.context("nobody can tell any more how the guest ends")?,
        failed = descriptors::socket::serve(descriptor_socket, descriptors) => {
            let error = failed.err().map_or_else(String::new, |error| error.to_string());
            Ending::Error(format!("serving the descriptor socket: {error}"))
        }
    };
    tracing::info!(reason = ending.reason(), "the guest has ended");
    // First, as taking the machine down waits for its devices. The daemon can do without it.
    if let Err(error) = ending.record(dir) {
        tracing::error!(%error, "exit.json could not be written");
    }
    let logs = control.stop();
    if let Some(logs) = logs
        && !logs.finish(LOGS_TIMEOUT).await
    {
        tracing::warn!("container output was lost: it did not end in time");
    }
    // Answers that are on their way, `ShutDown`'s for one, still go out.
    server
        .shutdown()
        .await
        .context("ending the control service")?;
    Ok(ending)
}

fn control_listener(socket: OwnedFd) -> std::io::Result<Listener> {
    Listener::try_from(std::os::unix::net::UnixListener::from(socket))
}

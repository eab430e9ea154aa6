//! The service on unix sockets, in whatever namespaces the agent was started in.
//!
//! Tests run real containers this way, and a host's trusted pods will: nothing but where sockets and
//! disks come from differs from a microVM.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use isopod_proto::agent_ttrpc::create_agent;
use nix::sys::prctl::set_child_subreaper;
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener as RpcListener;

use crate::process::Reaper;
use crate::service::{AgentService, Served, Surroundings};
use crate::storage::{Disks, Folder, Volumes};
use crate::stream::{self, Listener};

/// Parent of containers' cgroups when the command line names none.
const DEFAULT_CGROUP: &str = "/isopod";

/// Why the agent does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The command line.
    #[error("{0}")]
    Arguments(String),
    /// A socket, a folder or the signal handler.
    #[error("{what}")]
    Io {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// ttrpc's listener.
    #[error("serving the agent's service")]
    Rpc(#[source] ttrpc::Error),
}

impl ServeError {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

struct Options {
    agent: PathBuf,
    streams: PathBuf,
    surroundings: Surroundings,
}

/// The role's main function.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    match parse(args).and_then(serve_unix) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(
                error = crate::service::chain(&error),
                "the agent cannot serve"
            );
            ExitCode::FAILURE
        }
    }
}

fn parse(args: &[OsString]) -> Result<Options, ServeError> {
    let (mut agent, mut streams, mut state_dir) = (None, None, None);
    let (mut disks, mut volumes) = (None, None);
    let mut cgroup = PathBuf::from(DEFAULT_CGROUP);
    let mut args = args.iter();
    while let Some(name) = args.next() {
        let name = name.to_string_lossy();
        let value = args.next().map(PathBuf::from);
        let value = value.ok_or_else(|| ServeError::Arguments(format!("{name} has no value")))?;
        match name.as_ref() {
            "--agent" => agent = Some(value),
            "--streams" => streams = Some(value),
            "--state-dir" => state_dir = Some(value),
            "--disks" => disks = Some(value),
            "--volumes" => volumes = Some(value),
            "--cgroup" => cgroup = value,
            _ => return Err(ServeError::Arguments(format!("unknown option {name}"))),
        }
    }
    let need = |value: Option<PathBuf>, name: &str| {
        value.ok_or_else(|| ServeError::Arguments(format!("{name} is missing")))
    };
    let disks = need(disks, "--disks")?;
    let volumes = Volumes::Folder(volumes.unwrap_or_else(|| disks.clone()));
    let surroundings = Surroundings {
        state_dir: need(state_dir, "--state-dir")?,
        disks: Disks::Folder(Folder::new(disks)),
        volumes,
        cgroup,
        search_bus: || Ok(()),
        before_set_up: || {},
        // A host's are its own.
        set_processors: |_| 0,
        use_memory: || Ok(()),
        after_set_up: || {},
    };
    Ok(Options {
        agent: need(agent, "--agent")?,
        streams: need(streams, "--streams")?,
        surroundings,
    })
}

fn serve_unix(options: Options) -> Result<(), ServeError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::io("starting the runtime"))?;
    runtime.block_on(async {
        // Containers' processes must come to the agent when their parents end.
        set_child_subreaper(true)
            .map_err(io::Error::from)
            .map_err(ServeError::io("becoming a subreaper"))?;
        let rpc = RpcListener::from(bind(&options.agent)?);
        let streams = Listener::Unix(bind(&options.streams)?);
        serve(rpc, streams, options.surroundings).await
    })
}

fn bind(path: &PathBuf) -> Result<UnixListener, ServeError> {
    // A socket of an agent that is gone.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
    .map_err(ServeError::io("binding a socket"))
}

/// Serves until the sandbox is powered off.
///
/// # Errors
///
/// [`ServeError`] when serving cannot begin.
pub(crate) async fn serve(
    rpc: RpcListener,
    streams: Listener,
    surroundings: Surroundings,
) -> Result<(), ServeError> {
    let reaper = Reaper::start().map_err(ServeError::io("listening for exits"))?;
    let service = AgentService::new(surroundings, reaper)
        .map_err(ServeError::io("making the state folder"))?;
    tokio::spawn(stream::serve(streams, service.containers()));
    let mut server = Server::new()
        .add_listener(rpc)
        .register_service(create_agent(Arc::new(Served(Arc::clone(&service)))));
    server.start().await.map_err(ServeError::Rpc)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "serving");
    service.powered_off().await;
    Ok(())
}

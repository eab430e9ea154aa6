//! The agent: receives OCI specs over ttrpc and runs them.
//!
//! One binary, several roles, chosen by how it was started:
//!
//! ```text
//!  /init                     PID 1 of a microVM: guest set-up, then the service on vsock
//!  isopod-agent serve ...    the same service on unix sockets, in whatever namespaces it is in
//!  isopod-agent helper       one OCI operation, single-threaded, started by the service
//!  isopod-agent mapper       writes the ids of a user namespace that a helper makes
//!  pause                     the holder: PID 1 of a sandbox's shared pid namespace
//! ```
//!
//! The rooms: [`guest`] is all that knows about the machine; [`service`] is the RPC interface, one
//! verb per file; [`container`] what a container is made of; [`helper`] the process boundary to
//! libcontainer; [`process`] who runs and who has exited; [`stream`] their output and input;
//! [`network`] the sandbox's interfaces; [`stats`] what all of it uses;
//! [`storage`] disks and root filesystems; [`pid_namespace`] the namespace that containers share;
//! [`user_namespace`] the one in which their root is nobody in particular.

mod container;
mod descriptor;
mod guest;
mod helper;
mod network;
mod pid_namespace;
mod process;
mod serve;
mod service;
mod stats;
mod storage;
mod stream;
mod user_namespace;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: isopod-agent serve --agent SOCKET --streams SOCKET --state-dir DIR \
                     --disks DIR [--volumes DIR] [--cgroup PATH]
       isopod-agent version";

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called_as = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    match Path::new(&called_as)
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("init") => return guest::run(),
        Some(pid_namespace::HOLDER_NAME) => return pid_namespace::hold(),
        _ => {}
    }
    match args.first().and_then(|arg| arg.to_str()) {
        Some("serve") => serve::run(&args[1..]),
        Some(helper::ROLE) => helper::run(),
        Some(user_namespace::MAPPER_ROLE) => user_namespace::map(&args[1..]),
        Some("version") => {
            println!("isopod-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

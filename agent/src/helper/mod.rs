//! The process boundary to libcontainer.
//!
//! libcontainer forks and enters namespaces, which only a single-threaded process may do safely. So
//! every OCI operation runs in a helper: the agent executes itself with one end of a socket pair as
//! standard input, sends a [`Request`] with the descriptors that the operation needs, and reads
//! [`Report`]s, one JSON object per line.
//!
//! ```text
//!  agent                         helper                      container's init (or exec)
//!    │── Request + descriptors ────>│                              
//!    │                              │── fork (libcontainer) ──────────>│
//!    │<── Report::Detail* ──────────│                                  │ namespaces, rootfs, ...
//!    │<── Report::Done { pid } ─────│                                  │ waits for start
//!    │ watches pid                  │                                  │
//!    │── closes the socket ────────>│ exits                            │
//!    │      the init is reparented to the agent, which collects it     │
//! ```
//!
//! The helper stays the parent until the agent watches the process, so no exit can be missed.
//! Whether the process was really executed is told by the *outcome* pipe: its write end lives in
//! the process and closes on exec; a failure to execute is written to it first ([`Refusal`]).
//!
//! [`launch`] is the agent's side, on its runtime; everything else here runs in the helper, which
//! has one thread and ends after one operation. It logs nothing: what libcontainer says about an
//! error travels as [`Report::Detail`].

mod console;
mod create;
mod delete;
mod detail;
mod exec;
mod launch;
mod outcome;
mod payload;
mod protocol;
mod start;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::unistd::setgroups;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::stdio::dup2_stdin;

pub(crate) use console::{Console, ConsoleError};
pub(crate) use launch::{HelperError, launch};
pub(crate) use outcome::{Outcome, OutcomeEnd};
use protocol::{Channel, Report};
pub(crate) use protocol::{
    Confinement, CreateRequest, ExecRequest, MappedUser, Refusal, RefusalKind, Request,
    RuntimeRequest,
};

use crate::{pid_namespace, user_namespace};

/// The argument that starts a helper.
pub(crate) const ROLE: &str = "helper";

/// Descriptors that the helper keeps for itself begin here, out of the way of standard streams.
const CHANNEL_FD_MIN: i32 = 10;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
enum OperationError {
    #[error("the request does not come with its descriptors")]
    Descriptors,
    #[error("libcontainer does not know the pid of what it started")]
    NoPid,
    #[error(transparent)]
    Container(#[from] libcontainer::error::LibcontainerError),
    #[error(transparent)]
    PidNamespace(#[from] pid_namespace::CreateError),
    #[error(transparent)]
    UserNamespace(#[from] user_namespace::CreateError),
    #[error("reading {path}")]
    Read {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The helper's main function.
pub(crate) fn run() -> ExitCode {
    let Ok((channel, request, fds)) = begin() else {
        return ExitCode::FAILURE;
    };
    detail::install(&channel);
    let result = match request {
        Request::Create(request) => create::create(&request, fds).map(Some),
        Request::Start(request) => start::start(&request).map(|()| None),
        Request::Exec(request) => exec::exec(&request, fds).map(Some),
        Request::Delete(request) => delete::delete(&request).map(|()| None),
        Request::HoldPidNamespace => pid_namespace::create().map(Some).map_err(Into::into),
        Request::HoldUserNamespace(request) => user_namespace::create(&request)
            .map(Some)
            .map_err(Into::into),
    };
    let report = match result {
        Ok(pid) => Report::Done { pid },
        Err(error) => Report::Failed {
            message: crate::service::chain(&error),
        },
    };
    finish(channel, &report)
}

/// Takes the request off standard input, and the channel out of the way of the process's streams.
fn begin() -> std::io::Result<(Channel, Request, Vec<OwnedFd>)> {
    let channel = fcntl_dupfd_cloexec(std::io::stdin().as_fd(), CHANNEL_FD_MIN)?;
    let mut channel = Channel::new(channel);
    dup2_stdin(File::open("/dev/null")?)?;
    // A container whose user is in no group must not be in the agent's.
    setgroups(&[])?;
    let (request, fds) = channel.receive()?;
    Ok((channel, request, fds))
}

/// Reports, and waits until the agent has taken notice.
fn finish(mut channel: Channel, report: &Report) -> ExitCode {
    match channel.report(report).and_then(|()| channel.wait_closed()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A builder for a process with its standard streams, or with a terminal.
fn builder(
    container_id: &str,
    console: Option<&Path>,
    fds: Vec<OwnedFd>,
) -> Result<(ContainerBuilder, OutcomeEnd), OperationError> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or(OperationError::Descriptors);
    let outcome = OutcomeEnd::new(next()?);
    let builder = ContainerBuilder::new(container_id.to_owned(), SyscallType::default());
    let builder = match console {
        Some(path) => builder.with_console_socket(Some(path)),
        None => builder
            .with_stdin(next()?)
            .with_stdout(next()?)
            .with_stderr(next()?),
    };
    Ok((builder, outcome))
}

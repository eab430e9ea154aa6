//! Starts a helper and hears it out. On the agent's runtime.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::ROLE;
use super::protocol::{self, Report, Request};
use crate::process::{Reaper, Signal};

/// How long an operation may take. The slowest is a create that mounts many volumes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Helpers at once; more wait. Each is a process, and a caller may ask for very many.
const HELPERS_MAX: usize = 32;

/// Most bytes of reports that are heard.
const REPORTS_MAX: u64 = 64 * 1024;

/// Why a helper did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    /// It could not be started, or told.
    #[error("starting a helper process")]
    Start(#[source] io::Error),
    /// What it said cannot be read.
    #[error("reading from a helper process")]
    Read(#[source] io::Error),
    /// It ended without a report.
    #[error("a helper process ended without an answer")]
    Silent,
    /// It took too long, and was killed.
    #[error("a helper process took longer than {seconds} s", seconds = TIMEOUT.as_secs())]
    TimedOut,
    /// The operation failed.
    #[error("{0}")]
    Operation(String),
}

/// An operation that is done. Dropping this lets the helper end.
#[derive(Debug)]
pub(crate) struct Launched {
    /// The process that it started. It is the helper's child, and so cannot be collected by the
    /// reaper, until this is dropped.
    pub(crate) pid: Option<Pid>,
    _channel: BufReader<UnixStream>,
}

/// Runs one operation in a helper.
///
/// # Errors
///
/// When there is no helper, or the operation fails.
pub(crate) async fn launch(
    reaper: &Reaper,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<Launched, HelperError> {
    static PERMITS: Semaphore = Semaphore::const_new(HELPERS_MAX);
    // Never closed, so there always is one at last.
    let _permit = PERMITS.acquire().await;
    let (ours, theirs) = StdUnixStream::pair().map_err(HelperError::Start)?;
    let child = Command::new("/proc/self/exe")
        .arg0("isopod-agent")
        .arg(ROLE)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(HelperError::Start)?;
    // The reaper collects it; `watched` resolves when it has.
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
    let mut watched = reaper.watch(pid);
    drop(child);

    protocol::send(ours.as_fd(), request, fds).map_err(HelperError::Start)?;
    ours.set_nonblocking(true).map_err(HelperError::Start)?;
    let channel = BufReader::new(UnixStream::from_std(ours).map_err(HelperError::Start)?);
    let result = tokio::time::timeout(TIMEOUT, hear(channel)).await;
    result.unwrap_or_else(|_elapsed| {
        // Only while it is ours: a collected pid may be another process's.
        if watched.try_recv().is_err() {
            let _ = Signal::KILL.send(pid);
        }
        Err(HelperError::TimedOut)
    })
}

async fn hear(channel: BufReader<UnixStream>) -> Result<Launched, HelperError> {
    let mut channel = channel.take(REPORTS_MAX);
    let mut details = Vec::new();
    loop {
        let mut line = Vec::new();
        channel
            .read_until(b'\n', &mut line)
            .await
            .map_err(HelperError::Read)?;
        if line.is_empty() {
            return Err(HelperError::Silent);
        }
        match serde_json::from_slice(&line).map_err(|error| HelperError::Read(error.into()))? {
            Report::Detail(detail) => details.push(detail),
            Report::Done { pid } => {
                let pid = pid.map(Pid::from_raw);
                return Ok(Launched {
                    pid,
                    _channel: channel.into_inner(),
                });
            }
            Report::Failed { message } => {
                return Err(HelperError::Operation(explain(message, &details)));
            }
        }
    }
}

/// libcontainer's error says what it wanted to do, often without what the kernel said. That is in
/// the first event with an error in it ([`super::detail`]), or else in the first that says more.
fn explain(message: String, details: &[String]) -> String {
    let new = |detail: &&String| !message.contains(detail.as_str());
    let with_error = details
        .iter()
        .filter(new)
        .find(|detail| detail.contains(", err: "));
    match with_error.or_else(|| details.iter().find(new)) {
        Some(detail) => format!("{message} ({detail})"),
        None => message,
    }
}

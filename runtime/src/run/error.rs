//! Why a run failed, and the exit status that says so.

use nix::sys::signal::Signal;
use rustix::io::Errno;
use tonic::{Code, Status};

use crate::client::ClientError;

/// Exit status of a run that failed before its command did, as with docker and podman.
pub(crate) const EXIT_RUN_FAILED: u8 = 125;

/// Exit status when the command is there and cannot be executed.
const EXIT_NOT_EXECUTABLE: u8 = 126;

/// Exit status when the command is not there.
const EXIT_NOT_FOUND: u8 = 127;

/// What a signal's number is added to.
const EXIT_SIGNAL: u8 = 128;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The daemon cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon refused.
    #[error("{action}: {} ({:?})", status.message(), status.code())]
    Call {
        /// What was asked for.
        action: &'static str,
        /// The daemon's answer.
        status: Box<Status>,
    },
    /// The daemon could not start the command.
    #[error("{}", .0.message())]
    Start(Box<Status>),
    /// The image may not be pulled.
    #[error("the image {0} is not there, and --pull=never says not to pull it")]
    NoImage(String),
    /// The daemon answered nothing that makes sense.
    #[error("the daemon's answer to {action} has no {missing}")]
    Answer {
        /// What was asked for.
        action: &'static str,
        /// What the answer lacks.
        missing: &'static str,
    },
    /// The command's streams could not be opened.
    #[error("attaching to {url}")]
    Attach {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// The connection with the command's streams ended before they did.
    #[error("the daemon ended the command's streams: {0}")]
    Lost(String),
    /// The command's output could not be passed on.
    #[error("writing the command's output")]
    Output(#[source] std::io::Error),
    /// `-i -t` without a terminal.
    #[error("standard input is no terminal: leave out -t")]
    NoTerminal,
    /// The terminal could not be set up.
    #[error("setting up the terminal")]
    Terminal(#[source] Errno),
    /// Something of the operating system's.
    #[error("{action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A signal came before the command was started, or once too often.
    #[error("interrupted by {0}")]
    Interrupted(Signal),
}

impl RunError {
    /// A refusal of the daemon's, and what it was asked for.
    pub(super) fn call(action: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Call {
            action,
            status: Box::new(status),
        }
    }

    /// What the process exits with.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            // The codes that StartContainer gives a command that is not in the image, or is no
            // program.
            Self::Start(status) => match status.code() {
                Code::FailedPrecondition => EXIT_NOT_FOUND,
                Code::InvalidArgument => EXIT_NOT_EXECUTABLE,
                _ => EXIT_RUN_FAILED,
            },
            Self::Interrupted(signal) => u8::try_from(*signal as i32)
                .map_or(EXIT_RUN_FAILED, |number| EXIT_SIGNAL.saturating_add(number)),
            Self::Output(source) if source.kind() == std::io::ErrorKind::BrokenPipe => {
                EXIT_SIGNAL + 13
            }
            Self::Client(_)
            | Self::Call { .. }
            | Self::NoImage(_)
            | Self::Answer { .. }
            | Self::Attach { .. }
            | Self::Lost(_)
            | Self::Output(_)
            | Self::NoTerminal
            | Self::Terminal(_)
            | Self::System { .. } => EXIT_RUN_FAILED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_tells_a_missing_command_from_a_failed_run() {
        let start = |code| RunError::Start(Box::new(Status::new(code, ""))).exit_status();
        assert_eq!(start(Code::FailedPrecondition), 127);
        assert_eq!(start(Code::InvalidArgument), 126);
        assert_eq!(start(Code::Unavailable), 125);
        assert_eq!(RunError::Interrupted(Signal::SIGINT).exit_status(), 130);
        let pipe = std::io::ErrorKind::BrokenPipe.into();
        assert_eq!(RunError::Output(pipe).exit_status(), 141);
    }
}

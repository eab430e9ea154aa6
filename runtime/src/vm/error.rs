//! What can go wrong between the daemon and a machine.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::end::VmEnd;
use super::stream::StreamError;

/// Longest text of a peer that gets into an error, in characters.
const MESSAGE_MAX: usize = 1024;

/// Who answers over ttrpc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The sandbox's VMM.
    Vmm,
    /// The agent in the guest.
    Agent,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Vmm => "the VMM",
            Self::Agent => "the guest's agent",
        })
    }
}

/// Why a peer refused, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The request itself is wrong.
    InvalidArgument,
    /// What it names is not there.
    NotFound,
    /// What it makes is already there.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// A limit is reached.
    ResourceExhausted,
    /// The peer does not know the method.
    Unimplemented,
    /// Anything else.
    Other,
}

impl From<ttrpc::Code> for Refusal {
    fn from(code: ttrpc::Code) -> Self {
        match code {
            ttrpc::Code::INVALID_ARGUMENT => Self::InvalidArgument,
            ttrpc::Code::NOT_FOUND => Self::NotFound,
            ttrpc::Code::ALREADY_EXISTS => Self::AlreadyExists,
            ttrpc::Code::FAILED_PRECONDITION => Self::FailedPrecondition,
            ttrpc::Code::RESOURCE_EXHAUSTED => Self::ResourceExhausted,
            ttrpc::Code::UNIMPLEMENTED => Self::Unimplemented,
            ttrpc::Code::OK
            | ttrpc::Code::CANCELLED
            | ttrpc::Code::UNKNOWN
            | ttrpc::Code::DEADLINE_EXCEEDED
            | ttrpc::Code::PERMISSION_DENIED
            | ttrpc::Code::UNAUTHENTICATED
            | ttrpc::Code::ABORTED
            | ttrpc::Code::OUT_OF_RANGE
            | ttrpc::Code::INTERNAL
            | ttrpc::Code::UNAVAILABLE
            | ttrpc::Code::DATA_LOSS => Self::Other,
        }
    }
}

/// Why something asked of a machine did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// A file, socket or process could not be made.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something that every machine needs is not there, or may not be opened: the node's fault.
    #[error("the {what}, {}, cannot be used (`isopod doctor` tells more)", path.display())]
    Missing {
        /// As the configuration calls it.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The machine ended first.
    #[error("the virtual machine has ended: {0}")]
    Ended(VmEnd),
    /// No answer in time.
    #[error("{peer} did not answer {method} within {} ms", limit.as_millis())]
    Timeout {
        /// Who.
        peer: Peer,
        /// To what.
        method: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the connection to {peer} broke in {method}: {message}")]
    Broken {
        /// Whose.
        peer: Peer,
        /// In which call.
        method: &'static str,
        /// What ttrpc said.
        message: String,
    },
    /// The peer said no.
    #[error("{peer} refused {method}: {message}")]
    Refused {
        /// Who.
        peer: Peer,
        /// What.
        method: &'static str,
        /// Why, for the caller's decisions.
        refusal: Refusal,
        /// Why, for people.
        message: String,
    },
    /// The answer cannot be true.
    #[error("{peer} gave an impossible answer to {method}: {reason}")]
    BadReply {
        /// Who.
        peer: Peer,
        /// To what.
        method: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The guest's agent belongs to another release.
    #[error("the guest's agent ({agent}) speaks protocol version {theirs}, this daemon {ours}")]
    AgentVersion {
        /// The agent's release.
        agent: String,
        /// Its protocol.
        theirs: u32,
        /// The daemon's.
        ours: u32,
    },
    /// The VMM did not take a descriptor.
    #[error("the VMM did not take the descriptor {name}: {reason}")]
    Descriptor {
        /// Under which name it was sent.
        name: String,
        /// What the VMM said.
        reason: String,
    },
    /// A process's streams.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The process could not be made to end.
    #[error("the VMM, process {0}, does not end")]
    Immortal(i32),
}

impl VmError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(super) fn missing(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Missing { what, path, source }
    }

    pub(super) fn rpc(peer: Peer, method: &'static str, error: &ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Refused {
                peer,
                method,
                refusal: status.code().into(),
                message: printable(status.message()),
            },
            other => Self::Broken {
                peer,
                method,
                message: printable(&other.to_string()),
            },
        }
    }

    /// Whether the peer answered that what was named is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                refusal: Refusal::NotFound,
                ..
            }
        )
    }

    /// Whether trying again on a new connection can help.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(
            self,
            Self::Broken { .. } | Self::Io { .. } | Self::Timeout { .. }
        )
    }
}

/// A peer's text without what could forge log lines, and not more of it than anybody reads.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .take(MESSAGE_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

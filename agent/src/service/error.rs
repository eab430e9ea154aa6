//! What the service answers when it cannot do what was asked: the one table to ttrpc's codes.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use ttrpc::Code;

use crate::container::{
    CgroupError, ContainerId, DevicesError, ExecId, IdError, LookupError, SpecError, UserError,
};
use crate::helper::{ConsoleError, HelperError, Refusal, RefusalKind};
use crate::network::NetworkError;
use crate::process::{IoError, SignalError};
use crate::storage::StorageError;

/// Longest message that is sent, in bytes.
const MESSAGE_MAX: usize = 8 * 1024;

/// Everything that a verb can fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The caller speaks another version.
    #[error("the agent speaks protocol version {ours}, the caller version {theirs}")]
    Protocol {
        /// Ours.
        ours: u32,
        /// The caller's.
        theirs: u32,
    },
    /// The sandbox was set up already.
    #[error("the sandbox is set up already")]
    AlreadySetUp,
    /// A field of a set-up that cannot be.
    #[error("{0}")]
    SetUp(&'static str),
    /// A sysctl that the kernel refuses or does not have.
    #[error("sysctl {name}")]
    Sysctl {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A name that is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Not known, or known already.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The container is not where it would have to be.
    #[error("container {id} is {is}, not {wanted}")]
    State {
        /// The container.
        id: ContainerId,
        /// Its state.
        is: &'static str,
        /// The state that the verb asks for.
        wanted: &'static str,
    },
    /// Only an exec that has exited can be deleted.
    #[error("exec {0} still runs")]
    ExecRuns(ExecId),
    /// The process was not seen to exit: the agent is ending.
    #[error("the process's end was not seen")]
    Unseen,
    /// Not a spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Not a user.
    #[error(transparent)]
    User(#[from] UserError),
    /// Not a signal.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The signal could not be sent.
    #[error("sending a signal")]
    Send(#[source] io::Error),
    /// A network interface.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A disk or a mount.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The command cannot be executed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// libcontainer, or the way to it.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The terminal.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The pipes.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The outcome pipe.
    #[error("making a pipe")]
    Pipe(#[source] io::Error),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The device rules.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// The kernel, which is to use more memory.
    #[error("preparing for more memory")]
    Memory(#[source] io::Error),
    /// One of the agent's own files.
    #[error("writing {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The task ended: the agent is going down.
    #[error("the operation was given up")]
    GivenUp,
}

impl AgentError {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            path: path.to_owned(),
            source,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Protocol { .. } | Self::State { .. } | Self::ExecRuns(_) => {
                Code::FAILED_PRECONDITION
            }
            Self::AlreadySetUp => Code::ALREADY_EXISTS,
            Self::SetUp(_)
            | Self::Sysctl { .. }
            | Self::Id(_)
            | Self::Spec(_)
            | Self::User(_)
            | Self::Signal(_)
            | Self::Cgroup(CgroupError::Limit(_))
            | Self::Devices(DevicesError::Rule(_)) => Code::INVALID_ARGUMENT,
            Self::Lookup(error) => lookup_code(error),
            Self::Network(error) => match error {
                NetworkError::Request { .. } => Code::INVALID_ARGUMENT,
                NetworkError::NotFound { .. } => Code::NOT_FOUND,
                NetworkError::Io(..) | NetworkError::Kernel { .. } => Code::INTERNAL,
            },
            Self::Storage(error) => storage_code(error),
            Self::Refused(refusal) => match refusal.kind {
                RefusalKind::NotFound => Code::NOT_FOUND,
                RefusalKind::NotExecutable | RefusalKind::Confinement => Code::INVALID_ARGUMENT,
            },
            // What libcontainer refuses is in the spec, and there is no telling it from the rest.
            Self::Helper(HelperError::Operation(_)) => Code::INVALID_ARGUMENT,
            Self::Helper(HelperError::TimedOut) => Code::DEADLINE_EXCEEDED,
            Self::Helper(HelperError::Start(_) | HelperError::Read(_) | HelperError::Silent)
            | Self::Unseen
            | Self::Send(_)
            | Self::Console(_)
            | Self::Pipe(_)
            | Self::Io(_)
            | Self::Cgroup(CgroupError::Io { .. } | CgroupError::Populated(_))
            | Self::Devices(DevicesError::Bpf { .. })
            | Self::Memory(_)
            | Self::File { .. } => Code::INTERNAL,
            Self::GivenUp => Code::UNAVAILABLE,
        }
    }
}

fn lookup_code(error: &LookupError) -> Code {
    match error {
        LookupError::Id(_) => Code::INVALID_ARGUMENT,
        LookupError::Container(_) | LookupError::Exec { .. } => Code::NOT_FOUND,
        LookupError::NotCreated(_) => Code::FAILED_PRECONDITION,
        LookupError::Exists { .. } => Code::ALREADY_EXISTS,
        LookupError::TooMany { .. } => Code::RESOURCE_EXHAUSTED,
    }
}

fn storage_code(error: &StorageError) -> Code {
    match error {
        StorageError::NotFound { .. } | StorageError::NoVolume { .. } => Code::NOT_FOUND,
        StorageError::InImage { .. } => Code::INVALID_ARGUMENT,
        StorageError::InUse { .. } | StorageError::NoScratch => Code::FAILED_PRECONDITION,
        StorageError::Io { .. } | StorageError::Mount { .. } | StorageError::Unmount { .. } => {
            Code::INTERNAL
        }
        StorageError::GivenUp => Code::UNAVAILABLE,
    }
}

impl From<AgentError> for ttrpc::Error {
    fn from(error: AgentError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), chain(&error)))
    }
}

/// An error and its causes as one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent wrappers repeat what they wrap.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text.truncate(text.floor_char_boundary(MESSAGE_MAX));
    text
}

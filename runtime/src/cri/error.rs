//! The one table from the daemon's errors to gRPC codes.
//!
//! No `_` arms: a new error must say here what it means to a caller. The message is the error with
//! its causes.

use std::io;

use tonic::{Code, Status};

use crate::cgroup::CgroupError;
use crate::chain::chain;
use crate::container::ContainerError;
use crate::events::EventsError;
use crate::field::FieldError;
use crate::image::ImageError;
use crate::network::{NetworkError, PluginError};
use crate::record::RecordError;
use crate::sandbox::{SandboxError, ScratchError};
use crate::streaming::TokenError;
use crate::table::LookupError;
use crate::vm::{Refusal, StreamError, VmError};

/// Why a CRI call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CriError {
    /// The request asks for something wrong or impossible.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The pods' networks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Listening to events.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// A stream's URL.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The method is not there yet.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// The call's task ended without an answer.
    #[error("the call ended without an answer")]
    Lost(#[from] tokio::task::JoinError),
}

impl CriError {
    /// Whether the call asked about something that is not there.
    pub(super) fn is_not_found(&self) -> bool {
        code(self) == Code::NotFound
    }
}

impl From<CriError> for Status {
    fn from(error: CriError) -> Self {
        Self::new(code(&error), chain(&error))
    }
}

impl From<ImageError> for Status {
    fn from(error: ImageError) -> Self {
        Self::new(of_image(&error), chain(&error))
    }
}

fn code(error: &CriError) -> Code {
    match error {
        CriError::Field(_) => Code::InvalidArgument,
        CriError::Sandbox(error) => of_sandbox(error),
        CriError::Container(error) => of_container(error),
        CriError::Network(error) => of_network(error),
        CriError::Events(EventsError::TooMany(_) | EventsError::Behind) => Code::ResourceExhausted,
        CriError::Events(EventsError::Stopping) => Code::Unavailable,
        CriError::Token(TokenError::TooMany) => Code::ResourceExhausted,
        CriError::Token(TokenError::Random(_)) => Code::Internal,
        CriError::Unimplemented(_) => Code::Unimplemented,
        CriError::Lost(_) => Code::Internal,
    }
}

fn of_sandbox(error: &SandboxError) -> Code {
    match error {
        SandboxError::Field(_) => Code::InvalidArgument,
        SandboxError::Lookup(error) => of_lookup(error),
        SandboxError::NameTaken(_) => Code::AlreadyExists,
        SandboxError::NotReady { .. } => Code::FailedPrecondition,
        SandboxError::Cancelled => Code::Cancelled,
        SandboxError::Vm(error) => of_vm(error),
        SandboxError::Held { .. } => Code::FailedPrecondition,
        SandboxError::NotGrown { .. } => Code::DeadlineExceeded,
        SandboxError::Network(error) => of_network(error),
        SandboxError::Scratch(error) => match error {
            ScratchError::Io { source, .. } => of_io(source),
            ScratchError::Mkfs { .. } => Code::Internal,
        },
        SandboxError::Cgroup(error) => of_cgroup(error),
        SandboxError::Record(error) => of_record(error),
        SandboxError::Io { source, .. } => of_io(source),
    }
}

/// What the node's administrator has to change is a failed precondition; what a plugin says of itself
/// is the plugin's trouble, unless it says that it passes.
fn of_network(error: &NetworkError) -> Code {
    match error {
        NetworkError::Field(_) => Code::InvalidArgument,
        NetworkError::Disabled
        | NetworkError::NoNetwork(_)
        | NetworkError::NoInterface(_)
        | NetworkError::Interfaces(_)
        | NetworkError::Interface(_) => Code::FailedPrecondition,
        NetworkError::Plugin(error) => match error {
            PluginError::Missing { .. } | PluginError::Run { .. } => Code::FailedPrecondition,
            PluginError::TimedOut { .. } => Code::DeadlineExceeded,
            PluginError::Cancelled(_) => Code::Cancelled,
            PluginError::Failed { code, .. } => match *code {
                Some(PluginError::INVALID_CONFIG) => Code::FailedPrecondition,
                Some(
                    PluginError::TRY_AGAIN | PluginError::NOT_AVAILABLE | PluginError::LIMITED,
                ) => Code::Unavailable,
                Some(_) | None => Code::Internal,
            },
            PluginError::TooMuch(_) | PluginError::Answer { .. } => Code::Internal,
        },
        NetworkError::Result(_) | NetworkError::Netlink { .. } | NetworkError::Interrupted => {
            Code::Internal
        }
        NetworkError::Io { source, .. } => of_io(source),
        NetworkError::Record(error) => of_record(error),
    }
}

fn of_container(error: &ContainerError) -> Code {
    match error {
        ContainerError::Field(_) => Code::InvalidArgument,
        ContainerError::Lookup(error) => of_lookup(error),
        ContainerError::NameTaken(_) => Code::AlreadyExists,
        ContainerError::NoImage(_) => Code::NotFound,
        ContainerError::Image(error) => of_image(error),
        ContainerError::State { .. } => Code::FailedPrecondition,
        ContainerError::Start { source, .. } | ContainerError::Exec { source, .. } => {
            of_start(source)
        }
        ContainerError::Unkillable { .. } | ContainerError::ExecTimeout(_) => {
            Code::DeadlineExceeded
        }
        ContainerError::Cancelled => Code::Cancelled,
        ContainerError::Sandbox(error) => of_sandbox(error),
        ContainerError::Vm(error) => of_vm(error),
        ContainerError::Record(error) => of_record(error),
        ContainerError::Io { source, .. } => of_io(source),
    }
}

fn of_cgroup(error: &CgroupError) -> Code {
    match error {
        CgroupError::Io { source, .. } => of_io(source),
        CgroupError::NoCpuset(_) | CgroupError::Type { .. } => Code::FailedPrecondition,
    }
}

fn of_record(error: &RecordError) -> Code {
    match error {
        RecordError::Io { source, .. } => of_io(source),
        RecordError::Json { .. } | RecordError::Version { .. } | RecordError::Interrupted => {
            Code::Internal
        }
    }
}

/// A full disk is for somebody else to empty; everything else is the daemon's own trouble.
fn of_io(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

fn of_lookup(error: &LookupError) -> Code {
    match error {
        LookupError::None(_) => Code::NotFound,
        LookupError::Several(_) => Code::InvalidArgument,
    }
}

fn of_image(error: &ImageError) -> Code {
    match error {
        ImageError::InvalidReference { .. } => Code::InvalidArgument,
        ImageError::NotFound { .. }
        | ImageError::NotInRegistry { .. }
        | ImageError::NoPlatform { .. } => Code::NotFound,
        ImageError::Denied { .. } => Code::PermissionDenied,
        ImageError::Unavailable { .. } => Code::Unavailable,
        ImageError::Corrupt { .. } => Code::DataLoss,
        ImageError::Refused { .. } => Code::FailedPrecondition,
        ImageError::TooLarge { .. } | ImageError::DiskFull { .. } => Code::ResourceExhausted,
        ImageError::Io { .. } | ImageError::Damaged { .. } => Code::Internal,
    }
}

/// A machine's refusals speak of things inside the machine: only what the caller itself named keeps
/// its meaning.
fn of_vm(error: &VmError) -> Code {
    match error {
        VmError::Refused { refusal, .. } => match refusal {
            Refusal::InvalidArgument => Code::InvalidArgument,
            Refusal::ResourceExhausted => Code::ResourceExhausted,
            Refusal::FailedPrecondition => Code::FailedPrecondition,
            Refusal::NotFound
            | Refusal::AlreadyExists
            | Refusal::Unimplemented
            | Refusal::Other => Code::Internal,
        },
        VmError::Missing { .. } | VmError::AgentVersion { .. } => Code::FailedPrecondition,
        VmError::Timeout { .. } => Code::DeadlineExceeded,
        VmError::Ended(_) | VmError::Broken { .. } => Code::Unavailable,
        VmError::Stream(error) => match error {
            StreamError::Refused(_) => Code::FailedPrecondition,
            StreamError::Io(_) | StreamError::Truncated => Code::Unavailable,
            StreamError::Header(_) | StreamError::Unexpected(_) | StreamError::Encode => {
                Code::Internal
            }
        },
        VmError::Io { .. }
        | VmError::BadReply { .. }
        | VmError::Descriptor { .. }
        | VmError::Immortal(_) => Code::Internal,
    }
}

/// A command that is not in the image is not a container that is not there.
fn of_start(error: &VmError) -> Code {
    match error {
        VmError::Refused {
            refusal: Refusal::NotFound,
            ..
        } => Code::FailedPrecondition,
        other => of_vm(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Peer;

    fn refused(refusal: Refusal) -> VmError {
        let (peer, method, message) = (Peer::Agent, "StartContainer", "no".to_owned());
        VmError::Refused {
            peer,
            method,
            refusal,
            message,
        }
    }

    #[test]
    fn unknown_id_is_not_found_and_a_shared_beginning_is_the_callers_mistake() {
        let none: SandboxError = LookupError::None("x".into()).into();
        let status = Status::from(CriError::from(none));
        assert_eq!(status.code(), Code::NotFound);
        let several: ContainerError = LookupError::Several("x".into()).into();
        assert_eq!(
            Status::from(CriError::from(several)).code(),
            Code::InvalidArgument
        );
    }

    #[test]
    fn missing_command_is_not_a_missing_container() {
        let source = refused(Refusal::NotFound);
        let error = ContainerError::Start {
            id: "c".into(),
            source,
        };
        let status = Status::from(CriError::from(error));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(
            status.message(),
            "container c could not be started: the guest's agent refused StartContainer: no"
        );
    }
}

//! What can go wrong with a sandbox.

use crate::cgroup::CgroupError;
use crate::field::FieldError;
use crate::network::NetworkError;
use crate::record::RecordError;
use crate::sandbox::scratch::ScratchError;
use crate::table::{LookupError, NameTaken};
use crate::vm::{VmEnd, VmError};

/// Why something asked of a sandbox did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// The request asks for something wrong or impossible.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// No sandbox, or more than one, answers to the id.
    #[error("sandbox not found: {0}")]
    Lookup(#[from] LookupError),
    /// Another sandbox has the pod's name, namespace, uid and attempt.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// The sandbox has been stopped, or its machine has ended.
    #[error("sandbox {id} is not ready{}", ending(.end.as_ref()))]
    NotReady {
        /// Which.
        id: String,
        /// How its machine ended, when that was not asked for.
        end: Option<VmEnd>,
    },
    /// The caller went away before the sandbox was ready.
    #[error("the request was cancelled")]
    Cancelled,
    /// The machine.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The guest has not plugged what it was asked to; it is asked to have what it had.
    #[error(
        "the guest does not grow: of {added_mib} MiB beside the {started_mib} MiB that it was started \
         with, it has taken {plugged_mib} MiB"
    )]
    NotGrown {
        /// What it was started with.
        started_mib: u32,
        /// What it was asked to have beside that.
        added_mib: u32,
        /// What it had of that when it was given up.
        plugged_mib: u32,
    },
    /// The guest would be ended by the host for what it holds.
    #[error(
        "the guest holds {held_mib} MiB of the host's memory, with no more to give back: the host \
         would end it for a limit of {limit_mib} MiB, which is the pod's and its overhead"
    )]
    Held {
        /// What it holds, or will when it has given back what it can.
        held_mib: u64,
        /// What the pod's cgroup would have room for.
        limit_mib: u64,
    },
    /// The network.
    #[error("the pod's network")]
    Network(#[from] NetworkError),
    /// The writable disk.
    #[error("making the sandbox's writable disk")]
    Scratch(#[from] ScratchError),
    /// The cgroup on the host.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file or folder.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl SandboxError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<std::path::PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

fn ending(end: Option<&VmEnd>) -> String {
    end.map(|end| format!(": its virtual machine has ended: {end}"))
        .unwrap_or_default()
}

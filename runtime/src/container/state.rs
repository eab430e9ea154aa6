//! Where a container is in its life.

use isopod_proto::cri;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::vm::{ProcessExit, VmEnd};

/// Exit code of a container that a signal, or the end of its machine, killed.
const KILLED: i32 = 128 + 9;
/// Exit code of a container whose process could not be started, as in containerd.
const NOT_STARTED: i32 = 128;
/// Exit code of a container of which nobody knows how it ended, as in containerd.
const UNKNOWN: i32 = 255;

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// Its process waits to be started.
    Created,
    /// Its process was started.
    Running {
        /// When, in nanoseconds since the epoch.
        started_at_ns: i64,
    },
    /// Its process has ended, or never began.
    Exited(ContainerExit),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerExit {
    /// When its process was started; 0 if it never was.
    pub(crate) started_at_ns: i64,
    /// When it ended.
    pub(crate) finished_at_ns: i64,
    /// 0 to 255.
    pub(crate) code: i32,
    /// One word that says why, as the CRI's users know it.
    pub(crate) reason: String,
    /// More about it, for people; may be empty.
    pub(crate) message: String,
}

impl ContainerState {
    /// In one word.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited(_) => "exited",
        }
    }

    /// As the CRI calls it.
    pub(crate) fn to_cri(&self) -> cri::ContainerState {
        match self {
            Self::Created => cri::ContainerState::ContainerCreated,
            Self::Running { .. } => cri::ContainerState::ContainerRunning,
            Self::Exited(_) => cri::ContainerState::ContainerExited,
        }
    }
}

impl ContainerExit {
    /// The process ended. The guest's clock is not trusted: a container does not end before it
    /// began.
    pub(super) fn of_process(started_at_ns: i64, exit: ProcessExit) -> Self {
        let reason = match exit {
            ProcessExit {
                oom_killed: true, ..
            } => "OOMKilled",
            ProcessExit { code: 0, .. } => "Completed",
            ProcessExit { .. } => "Error",
        };
        Self {
            started_at_ns,
            finished_at_ns: exit.at_ns.max(started_at_ns),
            code: exit.code,
            reason: reason.to_owned(),
            message: String::new(),
        }
    }

    /// The machine ended with the container in it.
    pub(super) fn of_machine(started_at_ns: i64, end: &VmEnd) -> Self {
        Self {
            started_at_ns,
            finished_at_ns: end.at_ns.max(started_at_ns),
            code: KILLED,
            reason: "Error".to_owned(),
            message: format!("the pod's virtual machine has ended: {end}"),
        }
    }

    /// The process could not be started.
    pub(super) fn not_started(message: String) -> Self {
        Self {
            started_at_ns: 0,
            finished_at_ns: clock::now_ns(),
            code: NOT_STARTED,
            reason: "StartError".to_owned(),
            message,
        }
    }

    /// The guest does not know the container any more.
    pub(super) fn lost(started_at_ns: i64) -> Self {
        Self {
            started_at_ns,
            finished_at_ns: clock::now_ns(),
            code: UNKNOWN,
            reason: "Unknown".to_owned(),
            message: "the guest does not know the container".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::EndReason;

    fn exit(code: i32, oom_killed: bool) -> ProcessExit {
        ProcessExit {
            code,
            at_ns: 5,
            oom_killed,
        }
    }

    #[test]
    fn reason_tells_success_failure_and_lack_of_memory_apart() {
        let reason = |exit| ContainerExit::of_process(1, exit).reason;
        assert_eq!(reason(exit(0, false)), "Completed");
        assert_eq!(reason(exit(3, false)), "Error");
        assert_eq!(reason(exit(137, true)), "OOMKilled");
    }

    #[test]
    fn container_never_ends_before_it_began() {
        assert_eq!(
            ContainerExit::of_process(9, exit(0, false)).finished_at_ns,
            9
        );
    }

    #[test]
    fn end_of_the_machine_looks_like_a_kill_and_says_so() {
        let end = VmEnd {
            reason: EndReason::Killed,
            message: String::new(),
            at_ns: 7,
        };
        let exit = ContainerExit::of_machine(1, &end);
        assert_eq!(
            (exit.code, exit.reason.as_str(), exit.finished_at_ns),
            (137, "Error", 7)
        );
        assert!(
            exit.message.contains("the VMM was killed"),
            "{}",
            exit.message
        );
    }
}

//! What pods and containers use, as the CRI tells it.
//!
//! The statistics' methods call this from their tasks. A guest is asked once for all of its
//! containers; guests are asked side by side. The answer's numbers are the guest's, its times the
//! host's.
//!
//! ```text
//!  cri ──> collect ──> vm (each guest's agent, with a deadline) ──> describe | metrics ──> CRI messages
//!              └── a guest that ends, or does not answer, is left out of a list
//! ```

mod collect;
mod describe;
mod metrics;
mod rate;

pub(crate) use self::collect::{Sample, of_sandbox, of_sandboxes};
pub(crate) use self::describe::{container_stats, sandbox_stats};
pub(crate) use self::metrics::{metric_descriptors, pod_metrics};
pub(crate) use self::rate::CpuRate;
pub(crate) use crate::vm::Ask;

//! Virtual processors: one thread each, and how the control thread stops and starts them.
//!
//! ```text
//!            ┌──────── run: KVM_RUN, serve the exit, again ────────┐
//!  spawned ──┤                     │ ^                             ├──> ended (reports why)
//!            │          hold() ────v │──── go()                    │
//!            └────────────────── held ──────── end() ──────────────┘
//! ```
//!
//! A vCPU that is in the guest is fetched with a signal, whose handler does nothing, after its
//! `immediate_exit` flag was set, so a signal that comes too early is not lost.

mod registers;
mod run;
mod threads;

pub(crate) use registers::{RegisterError, enter_pvh, set_msrs};
pub(crate) use threads::{VcpuError, Vcpus};

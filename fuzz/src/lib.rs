//! The parts of the daemon that the targets call. The daemon is a program and no library, so they
//! are compiled once more here; what a target may call of them is in a module `fuzz` of each.

#![cfg(fuzzing)]
#![allow(
    dead_code,
    unused_imports,
    reason = "the rest of them is the daemon's business"
)]

#[path = "../../runtime/src/chain.rs"]
mod chain;
#[path = "../../runtime/src/streaming/channel.rs"]
pub mod channel;
#[path = "../../runtime/src/config/mod.rs"]
mod config;
#[path = "../../runtime/src/image/mod.rs"]
pub mod image;
#[path = "../../runtime/src/logging.rs"]
mod logging;

//! The parts of the daemon and of the VMM that the targets call. These are programs and no libraries,
//! so the parts are compiled once more here; what a target may call of them is in a module `fuzz` of
//! each.

#![cfg(fuzzing)]
#![allow(
    dead_code,
    unused_imports,
    reason = "the rest of them is the programs' business"
)]

#[path = "../../runtime/src/chain.rs"]
mod chain;
#[path = "../../runtime/src/streaming/channel.rs"]
pub mod channel;
#[path = "../../runtime/src/network/cni/result.rs"]
pub mod cni_result;
#[path = "../../runtime/src/config/mod.rs"]
mod config;
#[path = "../../runtime/src/image/mod.rs"]
pub mod image;
#[path = "../../runtime/src/logging.rs"]
mod logging;
#[path = "../../vmm/src/machine/mod.rs"]
mod machine;
#[path = "../../vmm/src/pci/mod.rs"]
mod pci;
#[path = "../../vmm/src/virtio/mod.rs"]
mod virtio;

pub use self::virtio::net::fuzz as net;

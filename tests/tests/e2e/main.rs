//! Containers in microVMs, driven as the kubelet and people drive them. Needs KVM.

mod crashes;
mod cycles;
mod events;
mod exits;
mod guest_faults;
mod layers;
mod lifecycle;
mod logs;
mod machine;
mod memory;
mod metrics;
mod network;
mod posix;
mod resources;
mod restart;
mod run;
mod security;
mod stats;
mod streaming;
mod user_namespaces;
mod volumes;
mod walkthrough;

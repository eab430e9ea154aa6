//! A real kubelet, standalone, whose pods run in microVMs. Needs KVM.

mod life;
mod memory;
mod node;
mod restarts;
mod users;

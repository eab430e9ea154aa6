//! What a daemon does without a microVM: images, refusals, its own life. Needs no KVM.

mod commands;
mod daemon;
mod deploy;
mod image_faults;
mod images;
mod kills;
mod refusals;

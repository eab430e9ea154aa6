//! What a daemon does without a microVM: images, refusals, its own life. Needs no KVM.

mod daemon;
mod image_faults;
mod images;
mod refusals;

//! Isopod's daemon and the commands that people type.

#![allow(
    dead_code,
    unused_imports,
    reason = "the rooms land one after the other; the last one removes this line"
)]

mod config;
mod container;
mod cri;
mod id;
mod image;
mod vm;

fn main() {}

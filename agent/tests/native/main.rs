//! The agent's binary in namespaces of its own, with real containers, on this machine's kernel.
//!
//! Needs root and a static busybox (Debian: busybox-static). Without them every test is skipped and
//! says so; with `ISOPOD_NO_SKIP` set it fails instead. Limits need cgroup controllers in the
//! unified hierarchy, which a machine with cgroup v1 does not have; those tests run in the lab.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod exec;
mod harness;
mod lifecycle;
mod namespaces;
mod ports;
mod refusals;
mod security;
mod stats;
mod streams;
mod user_namespaces;
mod volumes;

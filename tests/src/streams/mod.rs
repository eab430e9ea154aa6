//! crictl's streams: exec, attach and port-forward as people use them.
//!
//! - [`exec`], [`feed`]: commands, and what they read.
//! - [`terminal`]: crictl on a terminal.
//! - [`forward`]: forwarded ports, and clients and servers for them.

pub mod forward;
pub mod terminal;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::node::Node;

/// The ways in which crictl streams.
pub const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// How long anything may take: much longer than it does, in an emulated host too.
const LIMIT: Duration = Duration::from_secs(120);

/// `crictl exec`, not started yet, with nothing to read.
///
/// # Errors
/// There is no crictl.
pub fn exec(
    node: &Node,
    transport: &str,
    flags: &[&str],
    container: &str,
    command: &[&str],
) -> Result<Command> {
    let verb = ["exec", "--transport", transport];
    let arguments = [&verb, flags, &[container], command].concat();
    let mut crictl = node.crictl()?.command(&arguments);
    crictl.stdin(Stdio::null());
    Ok(crictl)
}

/// Runs a command that reads `input` to its end.
///
/// # Errors
/// It cannot be started, or does not take its input.
pub fn feed(mut command: Command, input: Vec<u8>) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("it is piped")?;
    let writer = thread::Builder::new().spawn(move || stdin.write_all(&input))?;
    let output = child.wait_with_output()?;
    let written = writer.join().expect("it does not panic");
    written.with_context(|| text(&output.stderr))?;
    Ok(output)
}

/// Bytes that people read.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

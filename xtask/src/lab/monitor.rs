//! What QEMU's monitor tells of a machine that stands still.
//!
//! The protocol is QMP: a greeting, then a JSON object a line for each command and each answer.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What is asked: where the vCPU is, twice, and what its interrupt controller waits for.
const QUESTIONS: [&str; 4] = [
    "info status",
    "info registers",
    "info registers",
    "info lapic",
];

/// How long an answer may take, and how many bytes all of them may have.
const LIMIT: Duration = Duration::from_secs(5);
const BYTES_MAX: u64 = 1 << 20;

/// The answers, as text. What could not be asked is said in its place: nothing here may hide why it
/// was asked.
pub(super) fn state(socket: &Path) -> String {
    let mut text = String::new();
    if let Err(error) = ask(socket, &mut text) {
        text.push_str(&format!("{error:#}\n"));
    }
    text
}

fn ask(socket: &Path, text: &mut String) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connecting to QEMU's monitor")?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answers = BufReader::new(stream.try_clone()?.take(BYTES_MAX)).lines();
    writeln!(stream, "{}", json!({ "execute": "qmp_capabilities" }))?;
    for question in QUESTIONS {
        let arguments = json!({ "command-line": question });
        let command = json!({ "execute": "human-monitor-command", "arguments": arguments });
        writeln!(stream, "{command}")?;
        loop {
            let line = answers.next().context("QEMU's monitor is gone")?;
            let line = line.context("waiting for QEMU's monitor")?;
            let answer: Value = serde_json::from_str(&line).context("reading QEMU's monitor")?;
            // Other lines are the greeting, the empty answer to the first command, and events.
            if let Some(answer) = answer["return"].as_str() {
                text.push_str(&answer.replace('\r', ""));
                break;
            }
        }
    }
    Ok(())
}

//! What is going on, for people, on standard error: one line when a long step begins, one when it
//! has ended. Standard output is left to a command's result.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Says something.
pub(crate) fn say(text: &str) {
    // Nobody to tell: not a reason to stop.
    let _ = writeln!(std::io::stderr(), "{} {text}", arrow());
}

/// Runs a long step between two lines: what begins, and how long it took.
pub(crate) fn step<T, E>(
    what: &str,
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    say(&format!("{what} ..."));
    let begin = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    say(&format!(
        "{what}: {outcome} after {}",
        seconds(begin.elapsed())
    ));
    result
}

/// A duration as people read it.
pub(crate) fn seconds(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:.0} s", duration.as_secs() / 60, seconds % 60.0)
    }
}

fn arrow() -> &'static str {
    if std::io::stderr().is_terminal() {
        "\x1b[1;36m==>\x1b[0m"
    } else {
        "==>"
    }
}

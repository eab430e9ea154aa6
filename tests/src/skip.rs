//! Tests that cannot run on this machine.

use std::io::Write as _;

/// Set: a test that cannot run fails.
pub const NO_SKIP: &str = "ISOPOD_NO_SKIP";

/// Says that the calling test, which returns next, cannot run here, and why: in a line of its own
/// past the test harness's capture, which `cargo xtask test` counts.
///
/// # Panics
/// [`NO_SKIP`] is set.
pub fn skip(reason: &str) {
    assert!(std::env::var_os(NO_SKIP).is_none(), "{reason}");
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Not `println!`, which the harness captures.
    std::io::stdout()
        .write_all(format!("\nskipped {name}: {reason}\n").as_bytes())
        .expect("a test's output is read to its end");
}

//! Waiting for something to become true, with a limit.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything that should happen at once may take. The lab is ten to fifty times slower
/// than a machine with KVM, and has two CPUs for everything.
pub const LIMIT: Duration = Duration::from_secs(120);

const INTERVAL: Duration = Duration::from_millis(50);

/// Asks again and again until `check` returns something.
///
/// # Errors
/// The limit passed; the message names `what`.
pub fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        sleep(INTERVAL);
    }
}
